//! The report as a page: one HTML file that needs no other and no network, for a browser on a desk
//! or a phone, light or dark.
//!
//! Each section is a file with a function that makes it; `style.css` is put into the page. Text comes
//! from folders and files (classes, names) and is escaped by the template. Pictures have texts that
//! say what they show, and tables headers.
//!
//! To add a section: one file with its function, and its line in [`page`].

mod chart;
mod confusion;
mod curves;
mod figures;
mod gallery;
mod map;
mod thumbnail;

use super::{Embedded, EvaluateError, Report};
use crate::decode;
use crate::learner::history::Entry;
use crate::source::collection::Collection;
use maud::{DOCTYPE, Markup, PreEscaped, html};

/// What a page is made from.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// The figures.
    pub report: &'a Report,
    /// The embeddings that they came from.
    pub embedded: &'a Embedded,
    /// Where the training images are.
    pub train: &'a Collection,
    /// Where the test images are.
    pub test: &'a Collection,
    /// How they are decoded.
    pub decode: &'a decode::Config,
    /// The run's history; empty where there is none.
    pub history: &'a [Entry],
    /// Seeds which images are shown.
    pub seed: u64,
}

/// The page.
///
/// # Errors
/// An image that can no longer be read or decoded.
pub fn page(sources: &Sources<'_>) -> Result<String, EvaluateError> {
    let report = sources.report;
    let sections = [
        Some(figures::section(report)),
        figures::comparison(report),
        curves::section(report, sources.history),
        Some(confusion::section(report)),
        Some(map::section(sources)?),
        Some(gallery::section(sources)?),
    ];
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "selfstream: evaluation of " (short(&report.version)) }
                style { (PreEscaped(include_str!("style.css"))) }
            }
            body {
                (header(report))
                main { @for section in sections.into_iter().flatten() { (section) } }
                footer {
                    p {
                        "Labels were used for this evaluation alone; the encoder never saw them. "
                        "Made by selfstream in " (format!("{:.0}", report.seconds)) " s."
                    }
                }
            }
        }
    };
    Ok(markup.into_string())
}

fn header(report: &Report) -> Markup {
    html! {
        header {
            h1 { "Evaluation of an encoder" }
            p.facts {
                "Version " code { (report.version) } ". "
                (thousands(report.images_train)) " training images, "
                (thousands(report.images_test)) " test images, "
                (report.classes.len()) " classes, " (report.dim) " features."
            }
        }
    }
}

/// The beginning of a version, as logs show it.
fn short(version: &str) -> String {
    version.chars().take(20).collect()
}

/// A whole number with its thousands apart.
fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev();
    let groups: Vec<_> = groups.map(|group| String::from_utf8_lossy(group)).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::fixtures::{coloured, png};
    use crate::evaluate::{Config, Moment, RawPixels, StandardError, Supervised, supervised};
    use roxmltree::{Document, Node, ParsingOptions};

    /// A page of everything that there can be, of images in `folder`.
    fn full_page(folder: &std::path::Path) -> String {
        let collection = coloured(folder, 12);
        let embedded =
            Embedded::new(&collection, &collection, &mut RawPixels, &Config::default()).unwrap();
        let mut report = embedded.report(0).unwrap();
        report.floors = vec![embedded.floor("pixels", 0).unwrap()];
        let moment = |step: u64| Moment {
            step,
            images_learned: 64 * step,
            version: format!("<v{step}>"),
            knn: 0.1 + step as f64 / 1000.0,
            standard_error: 0.01,
        };
        report.over_time = vec![moment(100), moment(200)];
        let StandardError { knn, linear } = report.standard_error;
        report.supervised = Some(Supervised {
            version: "0123".to_owned(),
            accuracy: 0.9,
            knn: 0.8,
            linear: 0.85,
            standard_error: supervised::StandardError { accuracy: 0.01, knn, linear },
            steps: 7,
            seconds: 1.5,
            loss: 0.25,
        });
        let history: Vec<_> = (1..40).map(entry).collect();
        let (report, embedded, history) = (&report, &embedded, &history[..]);
        let (train, test, decode) = (&collection, &collection, &decode::Config::default());
        page(&Sources { report, embedded, train, test, decode, history, seed: 1 }).unwrap()
    }

    fn entry(step: u64) -> Entry {
        Entry {
            step,
            images_learned: 64 * step,
            loss: (step != 3).then_some(4.0 / step as f32),
            rate: 0.06,
            spread: Some(0.5),
            monitors: None,
            accuracy: Some(0.4),
            stable_overlap: None,
            version: Some(format!("v{step}")),
            time_ms: step as i64,
        }
    }

    /// The page as XML, which is stricter than HTML: elements without content are closed first.
    fn parse(page: &str) -> String {
        let mut xml = page.to_owned();
        for void in ["meta", "img"] {
            let open = format!("<{void} ");
            let mut parts = xml.split(&open);
            let mut closed = parts.next().unwrap().to_owned();
            for part in parts {
                let (attributes, rest) = part.split_once('>').unwrap();
                closed += &format!("{open}{attributes}/>{rest}");
            }
            xml = closed;
        }
        xml
    }

    fn document(xml: &str) -> Document<'_> {
        let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
        Document::parse_with_options(xml, options).unwrap()
    }

    fn elements<'a>(document: &'a Document<'a>, name: &str) -> Vec<Node<'a, 'a>> {
        document.descendants().filter(|node| node.has_tag_name(name)).collect()
    }

    fn text(node: Node<'_, '_>) -> String {
        node.descendants().filter(Node::is_text).filter_map(|node| node.text()).collect()
    }

    #[test]
    fn the_page_is_well_formed_and_every_section_has_a_heading() {
        let folder = tempfile::tempdir().unwrap();
        let xml = parse(&full_page(folder.path()));
        let document = document(&xml);
        let sections = elements(&document, "section");
        assert_eq!(sections.len(), 6);
        for section in sections {
            let heading = section.first_element_child().unwrap();
            assert!(heading.has_tag_name("h2"), "{heading:?}");
            assert_eq!(section.attribute("aria-labelledby"), heading.attribute("id"));
        }
        let ids: Vec<_> = document.descendants().filter_map(|node| node.attribute("id")).collect();
        let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
        assert_eq!(ids.len(), distinct.len(), "{ids:?}");
    }

    #[test]
    fn every_picture_has_a_text_and_every_table_headers() {
        let folder = tempfile::tempdir().unwrap();
        let xml = parse(&full_page(folder.path()));
        let document = document(&xml);
        let (images, drawings) = (elements(&document, "img"), elements(&document, "svg"));
        assert!(images.len() > 3 && drawings.len() > 2);
        for node in images {
            assert!(node.attribute("alt").is_some_and(|alt| !alt.is_empty()), "{node:?}");
        }
        for node in drawings {
            assert_eq!(node.attribute("role"), Some("img"));
            assert!(node.attribute("aria-label").is_some_and(|text| text.len() > 20));
        }
        let tables = elements(&document, "table");
        assert!(tables.len() >= 3);
        for table in tables {
            let rows = table.descendants().filter(|node| node.has_tag_name("tr"));
            for row in rows {
                let mut headers = row.children().filter(|cell| cell.has_tag_name("th"));
                let first = headers.next().expect("a row has a header");
                assert!(["row", "col"].contains(&first.attribute("scope").unwrap()));
            }
            assert!(table.children().any(|node| node.has_tag_name("caption")));
        }
    }

    #[test]
    fn nothing_is_fetched() {
        let folder = tempfile::tempdir().unwrap();
        let page = full_page(folder.path());
        for outside in ["http:", "https:", "//", "@import", "url(", "<script", "<link"] {
            // Base64 has slashes; what it follows is not a place.
            let without_images: String = page
                .split("data:image/jpeg;base64,")
                .map(|part| match part.split_once('"') {
                    Some((data, rest)) if !data.contains('<') => rest,
                    _ => part,
                })
                .collect();
            assert!(!without_images.contains(outside), "the page has {outside}");
        }
    }

    #[test]
    fn names_cannot_become_markup() {
        let folder = tempfile::tempdir().unwrap();
        let evil = "<script>alert('&\"1\"')<|script>";
        for (class, colour) in [(evil, [200, 0, 0]), ("plain", [0, 0, 200])] {
            let class = folder.path().join(class);
            std::fs::create_dir_all(&class).unwrap();
            for index in 0..3 {
                std::fs::write(class.join(format!("\"><b>{index}.png")), png(colour)).unwrap();
            }
        }
        let page = full_page(folder.path());
        assert!(!page.contains("<script") && !page.contains("<b>") && !page.contains("<v100>"));
        let xml = parse(&page);
        let document = document(&xml);
        let headers: Vec<_> = elements(&document, "th").into_iter().map(text).collect();
        assert!(headers.iter().any(|header| header == evil), "{headers:?}");
    }

    #[test]
    fn figures_of_the_report_stand_on_the_page() {
        let folder = tempfile::tempdir().unwrap();
        let xml = parse(&full_page(folder.path()));
        let document = document(&xml);
        let all = text(document.root_element());
        for figure in ["1.000 ± 0.000", "0.900 ± 0.010", "36 training images", "chance is 0.333"]
        {
            assert!(all.contains(figure), "no {figure} in {all}");
        }
        let counts: Vec<_> = elements(&document, "td").into_iter().map(text).collect();
        assert_eq!(counts.iter().filter(|count| *count == "12").count(), 3, "the diagonal");
    }

    #[test]
    fn without_a_history_there_are_no_curves() {
        let folder = tempfile::tempdir().unwrap();
        let collection = coloured(folder.path(), 3);
        let embedded =
            Embedded::new(&collection, &collection, &mut RawPixels, &Config::default()).unwrap();
        let report = embedded.report(0).unwrap();
        let (report, embedded, train, test) = (&report, &embedded, &collection, &collection);
        let decode = &decode::Config::default();
        let sources = Sources { report, embedded, train, test, decode, history: &[], seed: 1 };
        let page = page(&sources).unwrap();
        let xml = parse(&page);
        let document = document(&xml);
        let headings: Vec<_> = elements(&document, "h2").into_iter().map(text).collect();
        assert_eq!(headings, ["Figures", "Confusion", "Map", "Nearest neighbours"]);
    }

    #[test]
    fn thousands_stand_apart() {
        let found = [0, 999, 1000, 20_000, 1_234_567].map(thousands);
        assert_eq!(found, ["0", "999", "1,000", "20,000", "1,234,567"]);
    }
}
