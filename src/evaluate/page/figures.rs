//! The headline figures, and what they stand beside.

use crate::evaluate::{Floor, Report};
use maud::{Markup, html};

/// An accuracy with its standard error and what it says.
struct Figure {
    name: String,
    accuracy: f64,
    standard_error: f64,
    meaning: String,
}

/// The figures with what they mean.
pub(super) fn section(report: &Report) -> Markup {
    let chance = 1.0 / report.classes.len().max(1) as f64;
    let figures = figures(report);
    html! {
        section aria-labelledby="figures" {
            h2 id="figures" { "Figures" }
            div.cards {
                @for figure in figures.iter().take(2) {
                    div.card {
                        div.value { (with_error(figure.accuracy, figure.standard_error)) }
                        div.name { (figure.name) }
                    }
                }
                div.card {
                    div.value { (format!("{:.1}", report.rankme)) }
                    div.name { "RankMe, of " (report.dim) }
                }
            }
            p {
                "Accuracies are shares of the test images; if classes are equally frequent, chance is "
                (format!("{chance:.3}")) ". ± is one standard error: by the number of test images, or, "
                "for few labels, by the draws of the labels. Two accuracies that are closer than "
                "twice theirs may be equal."
            }
            table.figures {
                caption { "What the embeddings tell" }
                thead {
                    tr {
                        th scope="col" { "Measure" } th scope="col" { "Accuracy" }
                    }
                }
                tbody {
                    @for figure in &figures {
                        tr {
                            th scope="row" {
                                (figure.name) span.meaning { (figure.meaning) }
                            }
                            td.number { (bar(figure.accuracy, figure.standard_error)) }
                        }
                    }
                    tr {
                        th scope="row" {
                            "RankMe"
                            span.meaning {
                                "Over how many of " (report.dim) " directions the embeddings are "
                                "spread, told without labels; no accuracy. 1 is collapse. It "
                                "compares encoders of one length."
                            }
                        }
                        td.number { (format!("{:.1}", report.rankme)) }
                    }
                }
            }
        }
    }
}

fn figures(report: &Report) -> Vec<Figure> {
    let mut figures = vec![
        Figure {
            name: "kNN".to_owned(),
            accuracy: report.knn,
            standard_error: report.standard_error.knn,
            meaning: "The class is told by the 20 nearest training images.".to_owned(),
        },
        Figure {
            name: "Linear probe".to_owned(),
            accuracy: report.linear,
            standard_error: report.standard_error.linear,
            meaning:
                "The class is told by a linear map of the embedding, trained on all labels of \
                      the training images."
                    .to_owned(),
        },
    ];
    figures.extend(report.few_shot.iter().map(|few| {
        let plural = if few.labels_per_class == 1 { "" } else { "s" };
        Figure {
            name: format!("{} label{plural} a class", few.labels_per_class),
            accuracy: few.accuracy,
            standard_error: few.standard_error,
            meaning: format!(
                "The class is that of the nearest class mean, where {} image{plural} of each class \
                 made it; mean over {} draws.",
                few.labels_per_class, few.draws
            ),
        }
    }));
    figures
}

/// This encoder beside others, where there are any.
pub(super) fn comparison(report: &Report) -> Option<Markup> {
    if report.floors.is_empty() && report.supervised.is_none() {
        return None;
    }
    let own = &report.standard_error;
    Some(html! {
        section aria-labelledby="comparison" {
            h2 id="comparison" { "Comparison" }
            table.figures {
                caption { "The same images by other encoders" }
                thead {
                    tr {
                        th scope="col" { "Encoder" } th scope="col" { "kNN" }
                        th scope="col" { "Linear probe" }
                    }
                }
                tbody {
                    @if let Some(supervised) = &report.supervised {
                        tr {
                            th scope="row" {
                                "Supervised"
                                span.meaning {
                                    "The same encoder trained with the labels for "
                                    (format!("{:.0}", supervised.seconds)) " s, "
                                    (supervised.steps) " steps. Its own classifier reaches "
                                    (with_error(
                                        supervised.accuracy,
                                        supervised.standard_error.accuracy
                                    )) "."
                                }
                            }
                            td.number { (bar(supervised.knn, supervised.standard_error.knn)) }
                            td.number { (bar(supervised.linear, supervised.standard_error.linear)) }
                        }
                    }
                    tr.own {
                        th scope="row" {
                            "This encoder" span.meaning { "What is evaluated here." }
                        }
                        td.number { (bar(report.knn, own.knn)) }
                        td.number { (bar(report.linear, own.linear)) }
                    }
                    @for floor in &report.floors {
                        tr {
                            th scope="row" { (name(floor)) span.meaning { (meaning(floor)) } }
                            td.number { (bar(floor.knn, floor.standard_error.knn)) }
                            td.number { (bar(floor.linear, floor.standard_error.linear)) }
                        }
                    }
                }
            }
        }
    })
}

fn name(floor: &Floor) -> &str {
    match floor.name.as_str() {
        "pixels" => "Raw pixels",
        "untrained" => "Untrained",
        other => other,
    }
}

fn meaning(floor: &Floor) -> &'static str {
    match floor.name.as_str() {
        "pixels" => "The images themselves at 16 px: a floor.",
        "untrained" => "The same encoder before its first step: a floor.",
        _ => "A floor.",
    }
}

fn with_error(value: f64, standard_error: f64) -> String {
    format!("{value:.3} ± {standard_error:.3}")
}

/// An accuracy over a bar as long as it.
fn bar(accuracy: f64, standard_error: f64) -> Markup {
    html! {
        span { (with_error(accuracy, standard_error)) }
        div.bar aria-hidden="true" {
            div style=(format!("width:{:.1}%", 100.0 * accuracy)) {}
        }
    }
}
