//! The summary of a run, for people and as JSON.

use crate::learner::Summary;
use anyhow::{Context, Result};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::Path;

/// What a run did. The keys are a contract.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct RunSummary {
    /// Records received.
    pub(super) images_received: u64,
    /// Records refused.
    pub(super) images_refused: u64,
    /// Records passed over by the pace, or whose step was left out.
    pub(super) images_skipped: u64,
    /// Images learned, each counted at its first step.
    pub(super) images_learned: u64,
    /// Optimiser steps.
    pub(super) steps: u64,
    /// Images learned, replayed ones included, for each second from the first step to the end.
    pub(super) images_per_second: f64,
    /// Time from when the learner was opened to its end.
    pub(super) seconds: f64,
    /// The part of it in which learning stood still for checkpoints.
    pub(super) checkpoint_seconds: f64,
    /// The time that checkpoints took to be written, on a thread beside it.
    pub(super) checkpoint_write_seconds: f64,
    /// Mean loss of the first steps.
    pub(super) loss_first: Option<f32>,
    /// Mean loss of the last steps.
    pub(super) loss_last: Option<f32>,
    /// From broker timestamp to a served encoder that has learned the image.
    pub(super) freshness_seconds: Option<Percentiles>,
    /// Versions that went live.
    pub(super) versions_published: u64,
    /// The version that was live at the end.
    pub(super) version: Option<String>,
    /// Nearest-neighbour accuracy on images that were never streamed.
    pub(super) knn: Option<Knn>,
}

/// Median and 99th percentile.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Percentiles {
    p50: f64,
    p99: f64,
}

/// Nearest-neighbour accuracies, k = 20.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Knn {
    /// Of the encoder at the end.
    pub(super) encoder: f64,
    /// Of the same encoder before its first step.
    pub(super) untrained: f64,
    /// Of raw pixels at 16 px.
    pub(super) pixels: f64,
}

impl RunSummary {
    /// The summary of a learner that took steps of `batch_images`.
    pub(super) fn new(summary: &Summary, steps: u64, batch_images: usize) -> Self {
        let seconds = summary.learning.as_secs_f64().max(1e-9);
        let vitals = &summary.vitals;
        Self {
            images_received: vitals.received,
            images_refused: vitals.refused_here,
            images_skipped: vitals.skipped_here,
            images_learned: vitals.learned_here,
            steps,
            images_per_second: (steps * batch_images as u64) as f64 / seconds,
            seconds: summary.running.as_secs_f64(),
            checkpoint_seconds: summary.checkpoints.held_up.as_secs_f64(),
            checkpoint_write_seconds: summary.checkpoints.writing.as_secs_f64(),
            loss_first: summary.loss_first,
            loss_last: vitals.loss,
            freshness_seconds: summary.freshness_seconds.map(|[p50, p99]| Percentiles { p50, p99 }),
            versions_published: vitals.published,
            version: vitals.version.clone(),
            knn: None,
        }
    }

    /// Writes it as JSON.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// The same for people.
    pub(super) fn to_text(&self) -> String {
        let mut text = format!(
            "received {}, refused {}, skipped {}, learned {} images in {} steps, {:.1} images/s\n",
            self.images_received,
            self.images_refused,
            self.images_skipped,
            self.images_learned,
            self.steps,
            self.images_per_second
        );
        // Writing to a string cannot fail.
        if let (Some(first), Some(last)) = (self.loss_first, self.loss_last) {
            let _ = writeln!(text, "loss {first:.3} at first, {last:.3} at last");
        }
        if let Some(Percentiles { p50, p99 }) = self.freshness_seconds {
            let _ =
                writeln!(text, "from message to served encoder: median {p50:.1} s, 99% {p99:.1} s");
        }
        let _ = writeln!(
            text,
            "checkpoints held learning up for {:.2} s of {:.1} s, and were written in {:.2} s",
            self.checkpoint_seconds, self.seconds, self.checkpoint_write_seconds
        );
        let version = self.version.as_deref().unwrap_or("none");
        let _ = writeln!(text, "{} versions published, last {version}", self.versions_published);
        if let Some(Knn { encoder, untrained, pixels }) = self.knn {
            let _ = writeln!(
                text,
                "kNN accuracy on held-back images: encoder {encoder:.3}, untrained {untrained:.3}, raw pixels {pixels:.3}"
            );
        }
        text
    }
}
