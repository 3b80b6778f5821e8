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

const fn counter(name: &'static str, unit: Unit, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, unit, help }
}

const fn gauge(name: &'static str, unit: Unit, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, unit, help }
}

const fn histogram(
    name: &'static str,
    bounds: &'static [f64],
    unit: Unit,
    help: &'static str,
) -> Metric {
    Metric { name, kind: Kind::Histogram(bounds), unit, help }
}

/// Every metric of the program.
pub const TABLE: &[Metric] = &[
    counter("selfstream_received_records_total", Unit::Count, "Records received from the source"),
    counter("selfstream_learned_images_total", Unit::Count, "Images learned for the first time"),
    counter("selfstream_refused_records_total", Unit::Count, "Records refused, by reason"),
    histogram(
        "selfstream_claim_seconds",
        SECONDS,
        Unit::Seconds,
        "Time to fetch what a claim check names, or to fail",
    ),
    gauge("selfstream_in_flight_records", Unit::Count, "Records received and not done"),
    counter("selfstream_steps_total", Unit::Count, "Optimiser steps"),
    histogram("selfstream_step_seconds", SECONDS, Unit::Seconds, "Time of a training step"),
    gauge("selfstream_loss_nats", Unit::Count, "Loss of the last step"),
    gauge("selfstream_learning_rate_ratio", Unit::Count, "Learning rate of the last step"),
    gauge("selfstream_replay_images", Unit::Count, "Images in the replay buffer"),
    counter(
        "selfstream_duplicate_images_total",
        Unit::Count,
        "Images learned once and not kept, as near-duplicates of one kept shortly before",
    ),
    counter(
        "selfstream_near_duplicate_negatives_total",
        Unit::Count,
        "Pairs of near-duplicates in a batch that count less as negatives of each other",
    ),
    counter(
        "selfstream_skipped_images_total",
        Unit::Count,
        "Images done and not learned, by reason",
    ),
    counter(
        "selfstream_steps_not_taken_total",
        Unit::Count,
        "Steps left out, as their loss was not finite or far above the last ones",
    ),
    gauge(
        "selfstream_learning_alarm",
        Unit::Count,
        "0 learning goes well, 1 it may have to go back, 2 going back has not helped",
    ),
    counter(
        "selfstream_rollbacks_total",
        Unit::Count,
        "How often learning went back to an older checkpoint, by reason",
    ),
    gauge(
        "selfstream_training_spread_ratio",
        Unit::Count,
        "Spread of the embeddings that training made last: 0 is collapsed, 1 fills the sphere",
    ),
    gauge(
        "selfstream_training_alignment_ratio",
        Unit::Count,
        "Their alignment: mean squared distance of two views of an image",
    ),
    gauge(
        "selfstream_training_uniformity_ratio",
        Unit::Count,
        "Their uniformity: 0 is one point, -4 unrelated points",
    ),
    gauge(
        "selfstream_training_rankme_ratio",
        Unit::Count,
        "Their RankMe: over how many directions they are spread",
    ),
    gauge(
        "selfstream_training_alpha_req_ratio",
        Unit::Count,
        "Their alpha-ReQ: how fast their covariance's eigenvalues fall",
    ),
    gauge(
        "selfstream_embedding_rankme_ratio",
        Unit::Count,
        "RankMe of the served encoder's embeddings",
    ),
    gauge(
        "selfstream_stable_neighbour_overlap_ratio",
        Unit::Count,
        "Share of nearest neighbours that the newest version has in common with the stable one",
    ),
    gauge(
        "selfstream_embedding_spread_ratio",
        Unit::Count,
        "Spread of the served encoder's embeddings: 0 is collapsed, 1 fills the sphere",
    ),
    counter("selfstream_snapshots_published_total", Unit::Count, "Encoders that went live"),
    counter(
        "selfstream_snapshots_refused_total",
        Unit::Count,
        "Encoders that did not pass the gate, by reason",
    ),
    histogram(
        "selfstream_freshness_seconds",
        FRESH_SECONDS,
        Unit::Seconds,
        "From an image's broker timestamp to a served encoder that has learned it",
    ),
    gauge(
        "selfstream_prequential_knn_ratio",
        Unit::Count,
        "kNN accuracy on labelled images before they are learned, over a window",
    ),
    gauge(
        "selfstream_candidate_knn_ratio",
        Unit::Count,
        "kNN accuracy of the last candidate on the labelled images that came last",
    ),
    counter(
        "selfstream_prequential_images_total",
        Unit::Count,
        "Labelled images whose class was told before they were learned",
    ),
    counter(
        "selfstream_prequential_skipped_images_total",
        Unit::Count,
        "Labelled images passed over, as others waited or they could not be embedded",
    ),
    histogram(
        "selfstream_checkpoint_seconds",
        SECONDS,
        Unit::Seconds,
        "Time to write a checkpoint, which learning does not wait for but at the end",
    ),
    histogram(
        "selfstream_checkpoint_held_up_seconds",
        SECONDS,
        Unit::Seconds,
        "Time that learning stood still for a checkpoint: to copy what it holds, or to wait for it",
    ),
    gauge(
        "selfstream_kafka_lag_records",
        Unit::Count,
        "Records that the broker has and we have not read, by topic and partition",
    ),
    gauge(
        "selfstream_drift_score_ratio",
        Unit::Count,
        "How many standard deviations the last images lie beyond the usual distance from those before",
    ),
    counter("selfstream_drift_changes_total", Unit::Count, "How often what arrives has changed"),
    counter(
        "selfstream_loss_warnings_total",
        Unit::Count,
        "How often the training loss rose and stayed up",
    ),
    gauge(
        "selfstream_kafka_lag_alarm",
        Unit::Count,
        "1 where the lag is above kafka.lag_alarm_records",
    ),
    counter(
        "selfstream_lost_records_total",
        Unit::Count,
        "Records that nobody learned: the broker dropped them, or a learner went back to before it gave them up",
    ),
    counter(
        "selfstream_doubled_records_total",
        Unit::Count,
        "Records that another learner did too, as no checkpoint was left from before it went on",
    ),
    counter("selfstream_kafka_errors_total", Unit::Count, "Errors that Kafka's client reported"),
    counter("selfstream_commit_failures_total", Unit::Count, "Offset commits that failed"),
    counter(
        "selfstream_dead_letter_failures_total",
        Unit::Count,
        "Dead letters that could not be delivered",
    ),
    counter(
        "selfstream_event_failures_total",
        Unit::Count,
        "Events that were not delivered to kafka.events_topic",
    ),
    counter(HTTP_REQUESTS, Unit::Count, "HTTP requests answered, by route and status"),
    histogram(
        HTTP_REQUEST_DURATION,
        SECONDS,
        Unit::Seconds,
        "Time to answer an HTTP request, by route",
    ),
    counter(SERVER_IMAGES, Unit::Count, "Images embedded for queries"),
    histogram(SERVER_BATCH, IMAGES, Unit::Count, "Images in a batch of the serving encoder"),
    gauge(SERVER_PENDING, Unit::Count, "Images of accepted requests that have no answer yet"),
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
