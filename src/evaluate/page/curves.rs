//! The run over time: its loss, the accuracy of its snapshots, what its embeddings looked like.

use super::chart::{Chart, Point};
use crate::evaluate::Report;
use crate::learner::history::Entry;
use maud::{Markup, html};

/// The curves that there is something for.
pub(super) fn section(report: &Report, history: &[Entry]) -> Option<Markup> {
    let charts = [
        loss(history),
        accuracy(report),
        prequential(history),
        spread(history),
        rank(history),
        alignment(history),
    ];
    let charts: Vec<_> = charts.into_iter().filter(|chart| !chart.points.is_empty()).collect();
    if charts.is_empty() {
        return None;
    }
    let refused = history.iter().filter(|entry| entry.version.is_none()).count();
    Some(html! {
        section aria-labelledby="run" {
            h2 id="run" { "The run" }
            @if let Some(last) = history.last() {
                p {
                    (super::thousands(last.step as usize)) " steps, "
                    (super::thousands(last.images_learned as usize)) " images learned. "
                    @if refused > 0 {
                        (refused) " candidates did not pass the gate and never served. "
                    }
                }
            }
            div.charts {
                @for chart in &charts { figure { (chart.draw()) figcaption { (chart.meaning) } } }
            }
        }
    })
}

fn loss(history: &[Entry]) -> Chart {
    let point = |entry: &Entry| Some(Point::new(entry.step as f64, f64::from(entry.loss?)));
    Chart {
        title: "Loss",
        meaning: "Mean training loss since the snapshot before, in nats.",
        from_zero: false,
        points: history.iter().filter_map(point).collect(),
    }
}

fn accuracy(report: &Report) -> Chart {
    let point = |moment: &crate::evaluate::Moment| Point {
        x: moment.step as f64,
        y: moment.knn,
        error: moment.standard_error,
    };
    Chart {
        title: "kNN accuracy",
        meaning: "kNN accuracy of snapshots along the run, with its standard error.",
        from_zero: false,
        points: report.over_time.iter().map(point).collect(),
    }
}

fn prequential(history: &[Entry]) -> Chart {
    let point = |entry: &Entry| Some(Point::new(entry.step as f64, entry.accuracy?));
    Chart {
        title: "Prequential kNN accuracy",
        meaning: "kNN accuracy on labelled images of the stream, each before it was learned.",
        from_zero: false,
        points: history.iter().filter_map(point).collect(),
    }
}

fn spread(history: &[Entry]) -> Chart {
    let point = |entry: &Entry| Some(Point::new(entry.step as f64, f64::from(entry.spread?)));
    Chart {
        title: "Spread",
        meaning: "Standard deviation of the embeddings: 0 is collapsed, 1 fills the sphere evenly.",
        from_zero: true,
        points: history.iter().filter_map(point).collect(),
    }
}

fn rank(history: &[Entry]) -> Chart {
    let point =
        |entry: &Entry| Some(Point::new(entry.step as f64, entry.monitors.as_ref()?.rankme));
    Chart {
        title: "RankMe",
        meaning: "Over how many directions the embeddings of the last 256 images in training lie.",
        from_zero: true,
        points: history.iter().filter_map(point).collect(),
    }
}

fn alignment(history: &[Entry]) -> Chart {
    let point =
        |entry: &Entry| Some(Point::new(entry.step as f64, entry.monitors.as_ref()?.alignment?));
    Chart {
        title: "Alignment",
        meaning: "Mean squared distance of two views of an image: 0 is one point, 2 unrelated.",
        from_zero: true,
        points: history.iter().filter_map(point).collect(),
    }
}
