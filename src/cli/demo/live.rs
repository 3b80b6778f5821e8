//! The live line of the demo.

use crate::learner::Vitals;
use crate::source::kafka::Lag;
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often the line changes on a terminal, and how often one is printed elsewhere.
const ON_TERMINAL: Duration = Duration::from_millis(500);
const ELSEWHERE: Duration = Duration::from_secs(10);
/// Readings that the speed is taken over.
const READINGS: usize = 20;

/// Shows the vitals until `stop`.
pub(super) async fn show(vitals: watch::Receiver<Vitals>, lag: Lag, stop: CancellationToken) {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed_precise} {msg}") {
        bar.set_style(style);
    }
    let every = if bar.is_hidden() { ELSEWHERE } else { ON_TERMINAL };
    let mut readings = VecDeque::from([(Instant::now(), 0)]);
    while tokio::time::timeout(every, stop.cancelled()).await.is_err() {
        let now = vitals.borrow().clone();
        readings.push_back((Instant::now(), now.counts.learned));
        if readings.len() > READINGS {
            readings.pop_front();
        }
        let line = line(&now, speed(&readings), lag.records());
        if bar.is_hidden() {
            eprintln!("{line}");
        } else {
            bar.set_message(line);
            bar.tick();
        }
    }
    bar.finish_and_clear();
}

fn speed(readings: &VecDeque<(Instant, u64)>) -> f64 {
    match (readings.front(), readings.back()) {
        (Some((began, first)), Some((ended, last))) if last > first => {
            (last - first) as f64 / (*ended - *began).as_secs_f64()
        }
        _ => 0.0,
    }
}

fn line(vitals: &Vitals, images_per_second: f64, lag: u64) -> String {
    let version = vitals.version.as_ref().map_or("none yet", |version| &version[..12]);
    let loss = vitals.loss.map_or_else(|| "-".to_owned(), |loss| format!("{loss:.3}"));
    format!(
        "{} learned, {images_per_second:.1} images/s, step {}, loss {loss}, lag {lag}, encoder {version}",
        vitals.counts.learned, vitals.steps,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_is_over_all_readings() {
        let began = Instant::now();
        let readings = VecDeque::from([(began, 100), (began + Duration::from_secs(4), 500)]);
        assert!((speed(&readings) - 100.0).abs() < 1e-9);
        assert_eq!(speed(&VecDeque::from([(began, 100)])), 0.0);
    }
}
