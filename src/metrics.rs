//! Metrics: one table names, types and explains everything that `/metrics` shows.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use std::sync::{Mutex, PoisonError};

/// Answered HTTP requests, by `route` and `status`.
pub const HTTP_REQUESTS: &str = "selfstream_http_requests_total";
/// From the request's head to the answer's head, by `route`.
pub const HTTP_REQUEST_DURATION: &str = "selfstream_http_request_duration_seconds";
/// Images whose embeddings were computed for queries.
pub const SERVER_IMAGES: &str = "selfstream_server_images_total";
/// Images in each batch that the serving encoder computed.
pub const SERVER_BATCH: &str = "selfstream_server_batch_images";
/// Images of accepted requests that have no answer yet.
pub const SERVER_PENDING: &str = "selfstream_server_pending_images";

/// A guess: 0.5 ms (a small image on an idle server) to 10 s (a drain time), near 1-2-5.
const SECONDS: &[f64] =
    &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];
/// A guess: from a snapshot every second to a day's backlog.
const FRESH_SECONDS: &[f64] = &[1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 10_000.0, 100_000.0];
/// Powers of two up to the largest batch that the settings allow.
const IMAGES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// How a metric is counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Observations, counted up to each of these bounds.
    Histogram(&'static [f64]),
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// `selfstream_<thing>_<unit>[_total]`.
    pub name: &'static str,
    /// How it is counted.
    pub kind: Kind,
    /// Its unit.
    pub unit: Unit,
    /// What it tells an operator.
    pub help: &'static str,
}

/// Every metric of the program.
pub const TABLE: &[Metric] = &[
    Metric {
        name: "selfstream_received_records_total",
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Records received from the source",
    },
    Metric {
        name: "selfstream_learned_images_total",
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Images learned for the first time",
    },
    Metric {
        name: "selfstream_refused_records_total",
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Records refused, by reason",
    },
    Metric {
        name: "selfstream_in_flight_records",
        kind: Kind::Gauge,
        unit: Unit::Count,
        help: "Records received and not done",
    },
    Metric {
        name: "selfstream_steps_total",
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Optimiser steps",
    },
    Metric {
        name: "selfstream_step_seconds",
        kind: Kind::Histogram(SECONDS),
        unit: Unit::Seconds,
        help: "Time of a training step",
    },
    Metric {
        name: "selfstream_loss_nats",
        kind: Kind::Gauge,
        unit: Unit::Count,
        help: "Loss of the last step",
    },
    Metric {
        name: "selfstream_learning_rate_ratio",
        kind: Kind::Gauge,
        unit: Unit::Count,
        help: "Learning rate of the last step",
    },
    Metric {
        name: "selfstream_replay_images",
        kind: Kind::Gauge,
        unit: Unit::Count,
        help: "Images in the replay buffer",
    },
    Metric {
        name: "selfstream_duplicate_images_total",
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Images learned once and not kept, as near-duplicates of one kept shortly before",
    },
    Metric {
        name: "selfstream_near_duplicate_negatives_total",
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Pairs of near-duplicates in a batch that count less as negatives of each other",
    },
    Metric {
        name: "selfstream_embedding_spread_ratio",
        kind: Kind::Gauge,
        unit: Unit::Count,
        help: "Spread of the served encoder's embeddings: 0 is collapsed, 1 fills the sphere",
    },
    Metric {
        name: "selfstream_snapshots_published_total",
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Encoders that went live",
    },
    Metric {
        name: "selfstream_snapshots_refused_total",
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Encoders that did not pass the gate, by reason",
    },
    Metric {
        name: "selfstream_freshness_seconds",
        kind: Kind::Histogram(FRESH_SECONDS),
        unit: Unit::Seconds,
        help: "From an image's broker timestamp to a served encoder that has learned it",
    },
    Metric {
        name: "selfstream_prequential_knn_ratio",
        kind: Kind::Gauge,
        unit: Unit::Count,
        help: "kNN accuracy on labelled images before they are learned, over a window",
    },
    Metric {
        name: "selfstream_prequential_images_total",
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Labelled images whose class was told before they were learned",
    },
    Metric {
        name: "selfstream_prequential_skipped_images_total",
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Labelled images passed over, as others waited or they could not be embedded",
    },
    Metric {
        name: "selfstream_checkpoint_seconds",
        kind: Kind::Histogram(SECONDS),
        unit: Unit::Seconds,
        help: "Time to write a checkpoint",
    },
    Metric {
        name: "selfstream_kafka_lag_records",
        kind: Kind::Gauge,
        unit: Unit::Count,
        help: "Records that the broker has and we have not read, by topic and partition",
    },
    Metric {
        name: "selfstream_lost_records_total",
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Records that the broker dropped before we read them",
    },
    Metric {
        name: "selfstream_kafka_errors_total",
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Errors that Kafka's client reported",
    },
    Metric {
        name: "selfstream_commit_failures_total",
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Offset commits that failed",
    },
    Metric {
        name: "selfstream_dead_letter_failures_total",
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Dead letters that could not be delivered",
    },
    Metric {
        name: HTTP_REQUESTS,
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "HTTP requests answered, by route and status",
    },
    Metric {
        name: HTTP_REQUEST_DURATION,
        kind: Kind::Histogram(SECONDS),
        unit: Unit::Seconds,
        help: "Time to answer an HTTP request, by route",
    },
    Metric {
        name: SERVER_IMAGES,
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Images embedded for queries",
    },
    Metric {
        name: SERVER_BATCH,
        kind: Kind::Histogram(IMAGES),
        unit: Unit::Count,
        help: "Images in a batch of the serving encoder",
    },
    Metric {
        name: SERVER_PENDING,
        kind: Kind::Gauge,
        unit: Unit::Count,
        help: "Images of accepted requests that have no answer yet",
    },
];

/// Installs the process's recorder, on the first call, and describes the table; every call gives
/// a handle to the same one.
///
/// Whoever holds a handle calls its `run_upkeep` every few seconds: observations are stored one
/// by one until then or until they are read. [`crate::server::serve`] does.
///
/// # Errors
/// When the process already has another recorder.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    static INSTALLED: Mutex<Option<PrometheusHandle>> = Mutex::new(None);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handle) = &*installed {
        return Ok(handle.clone());
    }
    let mut builder = PrometheusBuilder::new();
    for metric in TABLE {
        if let Kind::Histogram(bounds) = metric.kind {
            builder =
                builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), bounds)?;
        }
    }
    let handle = builder.install_recorder()?;
    for metric in TABLE {
        match metric.kind {
            Kind::Counter => describe_counter!(metric.name, metric.unit, metric.help),
            Kind::Gauge => describe_gauge!(metric.name, metric.unit, metric.help),
            Kind::Histogram(_) => describe_histogram!(metric.name, metric.unit, metric.help),
        }
    }
    *installed = Some(handle.clone());
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_say_their_unit() {
        let names: BTreeSet<_> = TABLE.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), TABLE.len());
        for Metric { name, kind, unit, .. } in TABLE {
            assert!(name.starts_with("selfstream_"), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            let base = name.trim_end_matches("_total");
            assert_eq!(base.ends_with("_seconds"), *unit == Unit::Seconds, "{name}");
        }
    }

    #[test]
    fn bounds_rise() {
        for Metric { name, kind, .. } in TABLE {
            if let Kind::Histogram(bounds) = kind {
                assert!(bounds.is_sorted_by(|low, high| low < high), "{name}");
            }
        }
    }

    #[test]
    fn every_install_gives_the_same_recorder() {
        let first = install().unwrap();
        let second = install().unwrap();
        metrics::counter!(SERVER_IMAGES).increment(1);
        for handle in [first, second] {
            assert!(handle.render().contains(SERVER_IMAGES));
        }
    }
}
