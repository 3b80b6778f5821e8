//! Test images with the training images that are nearest to them: what an embedding finds alike.

use super::Sources;
use super::thumbnail::thumbnail;
use crate::evaluate::{Embeddings, EvaluateError, Neighbour, Reference};
use crate::seed::{self, Purpose};
use crate::source::collection::Collection;
use maud::{Markup, html};
use rand::seq::IndexedRandom;

/// Queries at most: one of each class, of classes evenly apart where there are more.
const QUERIES: usize = 12;
/// Neighbours shown of each.
const NEIGHBOURS: usize = 8;
/// Longest side of a picture, twice what it is shown at, for dense screens.
const SIDE_PX: u32 = 144;
/// The seed counter of what is shown, see `report`.
const COUNTER: u64 = 5;

/// The gallery.
///
/// # Errors
/// An image that can no longer be read or decoded.
pub(super) fn section(sources: &Sources<'_>) -> Result<Markup, EvaluateError> {
    let embedded = sources.embedded;
    let (train, test) = (&embedded.train, &embedded.test);
    let queries = queries(&test.labels, embedded.classes.names().len(), sources.seed);
    let values = queries.iter().flat_map(|query| test.embeddings.row(*query)).copied().collect();
    let rows = Embeddings::new(values, test.embeddings.dim())?;
    let neighbours = Reference::new(&train.embeddings, &train.labels)?.neighbours(&rows)?;
    let rows: Result<Vec<Markup>, _> = queries
        .iter()
        .zip(&neighbours)
        .map(|(query, neighbours)| row(sources, *query, neighbours))
        .collect();
    Ok(html! {
        section aria-labelledby="gallery" {
            h2 id="gallery" { "Nearest neighbours" }
            p {
                "A test image of each class, drawn by seed, and the training images nearest to it, "
                "nearest first, with their class and cosine similarity. ✓ is the same class, "
                "✗ another."
            }
            div.gallery { @for row in rows? { (row) } }
        }
    })
}

/// A test image of each class that has any, drawn by `seed`, or of [`QUERIES`] of them.
fn queries(labels: &[usize], n_classes: usize, seed: u64) -> Vec<usize> {
    let mut members = vec![vec![]; n_classes];
    for (index, label) in labels.iter().enumerate() {
        members[*label].push(index);
    }
    members.retain(|members| !members.is_empty());
    let shown = members.len().min(QUERIES);
    let classes = (0..shown).map(|nth| &members[nth * members.len() / shown]);
    let mut rng = seed::rng(seed, Purpose::Evaluate, &[COUNTER]);
    classes.filter_map(|members| members.choose(&mut rng).copied()).collect()
}

fn row(
    sources: &Sources<'_>,
    query: usize,
    neighbours: &[Neighbour],
) -> Result<Markup, EvaluateError> {
    let (train, test) = (&sources.embedded.train, &sources.embedded.test);
    let (names, label) = (sources.embedded.classes.names(), test.labels[query]);
    let query = picture(sources, sources.test, test.positions[query], &names[label])?;
    let shown = neighbours.iter().take(NEIGHBOURS).map(|neighbour| {
        let found = train.labels[neighbour.reference];
        let position = train.positions[neighbour.reference];
        let picture = picture(sources, sources.train, position, &names[found])?;
        let mark = if found == label { "✓" } else { "✗" };
        Ok(html! {
            li class=(if found == label { "right" } else { "wrong" }) {
                (picture)
                span.caption {
                    (names[found]) " "
                    span.similarity { (format!("{mark} {:.2}", neighbour.similarity)) }
                }
            }
        })
    });
    let shown: Result<Vec<Markup>, EvaluateError> = shown.collect();
    Ok(html! {
        div.row {
            div.query { (query) span.caption { strong { (names[label]) } } }
            ol { @for neighbour in shown? { (neighbour) } }
        }
    })
}

/// The image at `position` of `collection`, one of the two of `sources`.
fn picture(
    sources: &Sources<'_>,
    collection: &Collection,
    position: usize,
    class: &str,
) -> Result<Markup, EvaluateError> {
    let name = collection.name(position);
    let uri = thumbnail(collection, position, sources.decode, SIDE_PX)?.uri;
    Ok(html! { img src=(uri) alt=(format!("{class}, {name}")) title=(name); })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_with_images_has_one_query() {
        let labels = [0, 0, 2, 2, 2, 3];
        let drawn = queries(&labels, 5, 1);
        assert!(drawn.iter().map(|query| labels[*query]).eq([0, 2, 3]));
        assert_eq!(drawn, queries(&labels, 5, 1));
        let many: Vec<usize> = (0..100).collect();
        let drawn = queries(&many, 100, 1);
        assert_eq!(drawn.len(), QUERIES);
        assert!(drawn.is_sorted_by(|a, b| a < b));
        assert!(queries(&[], 5, 1).is_empty());
    }
}
