//! Which classes kNN takes for which.

use crate::evaluate::{Confusion, Report};
use maud::{Markup, html};

/// More classes than this make no table that anyone reads: their mistakes are listed alone.
const MAX_TABLE_CLASSES: usize = 30;
/// The most frequent mistakes that are listed.
const LISTED: usize = 8;

/// The matrix as a table, and its most frequent mistakes as a list.
pub(super) fn section(report: &Report) -> Markup {
    let (names, confusion) = (&report.classes, &report.confusion);
    html! {
        section aria-labelledby="confusion" {
            h2 id="confusion" { "Confusion" }
            @if names.len() <= MAX_TABLE_CLASSES {
                (table(names, confusion))
            }
            (mistakes(names, confusion))
        }
    }
}

fn table(names: &[String], confusion: &Confusion) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="Confusion matrix" {
            table.confusion {
                caption { "Test images by their class (rows) and the class that kNN found (columns)" }
                thead {
                    tr {
                        th scope="col" { "class" }
                        @for name in names { th.turned scope="col" { span { (name) } } }
                        th.turned scope="col" { span { "found right" } }
                    }
                }
                tbody {
                    @for (class, (name, row)) in names.iter().zip(confusion.rows()).enumerate() {
                        tr {
                            th scope="row" { (name) }
                            @for (found, count) in row.iter().enumerate() {
                                (cell(*count, row.iter().sum(), class == found))
                            }
                            td.recall { (recall(confusion, class)) }
                        }
                    }
                }
            }
        }
    }
}

/// A count, shaded by its share of the row.
fn cell(count: u64, of: u64, is_right: bool) -> Markup {
    let percent = 100.0 * count as f64 / of.max(1) as f64;
    let kind = match (is_right, count) {
        (_, 0) => "none",
        (true, _) => "right",
        (false, _) => "wrong",
    };
    html! { td class=(kind) style=(format!("--share:{percent:.0}%")) { (count) } }
}

fn recall(confusion: &Confusion, class: usize) -> String {
    confusion.recall(class).map_or_else(|| "-".to_owned(), |recall| format!("{recall:.2}"))
}

fn mistakes(names: &[String], confusion: &Confusion) -> Markup {
    let mistakes = confusion.mistakes();
    html! {
        @if mistakes.is_empty() {
            p { "Every test image was found." }
        } @else {
            h3 { "Most frequent mistakes" }
            ol.mistakes {
                @for mistake in mistakes.iter().take(LISTED) {
                    li {
                        strong { (names[mistake.class]) } " taken for " strong { (names[mistake.found]) } ": "
                        (mistake.n_images) " of "
                        (confusion.rows()[mistake.class].iter().sum::<u64>())
                    }
                }
            }
        }
    }
}
