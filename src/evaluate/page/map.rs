//! Where test images lie among each other: their embeddings on a plane.
//!
//! The plane is that of the two principal components, rather than t-SNE or UMAP: the same
//! embeddings give the same map, distances on it mean what they say, and how much it leaves out is
//! a number that stands below it.

use super::Sources;
use super::thumbnail::{Thumbnail, thumbnail};
use crate::evaluate::pca::{Plane, plane};
use crate::evaluate::{Embeddings, EvaluateError};
use crate::seed::{self, Purpose};
use maud::{Markup, html};
use rand::seq::SliceRandom;

/// Test images on the map: as many as can be told apart.
const IMAGES: usize = 250;
/// The map's size, and that of a picture's longer side, in its own units: pixels on a desk.
const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 640.0;
const SIDE: f64 = 30.0;
/// Twice as sharp, for dense screens.
const SIDE_PX: u32 = 60;
/// The seed counter of what is shown, see `report`.
const COUNTER: u64 = 4;

/// The map with its legend.
///
/// # Errors
/// An image that can no longer be read or decoded.
pub(super) fn section(sources: &Sources<'_>) -> Result<Markup, EvaluateError> {
    let test = &sources.embedded.test;
    let mut shown: Vec<usize> = (0..test.labels.len()).collect();
    shown.shuffle(&mut seed::rng(sources.seed, Purpose::Evaluate, &[COUNTER]));
    shown.truncate(IMAGES);
    let unit = test.embeddings.normalised();
    let values = shown.iter().flat_map(|index| unit.row(*index)).copied().collect();
    let plane = plane(&Embeddings::new(values, unit.dim())?);
    let places = places(&plane);
    let classes = sources.embedded.classes.names();
    let picture_of =
        |index: &usize| thumbnail(sources.test, test.positions[*index], sources.decode, SIDE_PX);
    let thumbnails: Result<Vec<Thumbnail>, _> = shown.iter().map(picture_of).collect();
    let label = format!(
        "Map of {} test images by their embeddings, each framed in the colour of its class",
        shown.len()
    );
    let percent = |axis: usize| format!("{:.0} %", 100.0 * plane.shares[axis]);
    Ok(html! {
        section aria-labelledby="map" {
            h2 id="map" { "Map" }
            p {
                (shown.len()) " test images, drawn by seed, where their embeddings (of unit length) "
                "lie in the plane of the two directions in which they differ most. It shows "
                (percent(0)) " and " (percent(1)) " of their variance; the rest is not to be seen "
                "here. The frame's colour is the class."
            }
            (legend(classes))
            div.scroll tabindex="0" role="region" aria-label="Map" {
                svg.map viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(label) {
                    @for ((index, thumbnail), [x, y]) in shown.iter().zip(thumbnails?).zip(places) {
                        (picture(&thumbnail, [x, y], test.labels[*index], classes))
                    }
                }
            }
        }
    })
}

fn legend(classes: &[String]) -> Markup {
    html! {
        ul.legend {
            @for (class, name) in classes.iter().enumerate() {
                li { span.swatch style=(format!("background:{}", colour(class, classes.len()))) {}
                    (name) }
            }
        }
    }
}

fn picture(thumbnail: &Thumbnail, [x, y]: [f64; 2], label: usize, classes: &[String]) -> Markup {
    let (width, height) = if thumbnail.aspect > 1.0 {
        (SIDE, SIDE / thumbnail.aspect)
    } else {
        (SIDE * thumbnail.aspect, SIDE)
    };
    let (left, top) = (x - width / 2.0, y - height / 2.0);
    let stroke = colour(label, classes.len());
    html! {
        g {
            title { (classes[label]) }
            image x=(units(left)) y=(units(top)) width=(units(width)) height=(units(height))
                href=(thumbnail.uri) preserveAspectRatio="none" {}
            rect x=(units(left)) y=(units(top)) width=(units(width)) height=(units(height))
                fill="none" stroke=(stroke) stroke-width="2.5" {}
        }
    }
}

/// Points in the map's units, whole pictures inside it; up is up.
fn places(plane: &Plane) -> Vec<[f64; 2]> {
    let range = |axis: usize| {
        let values = || plane.points.iter().map(|point| point[axis]);
        let low = values().fold(f64::INFINITY, f64::min);
        (low, values().fold(f64::NEG_INFINITY, f64::max) - low)
    };
    let [(low_x, wide), (low_y, high)] = [range(0), range(1)];
    // One scale for both axes would keep distances; two fill the page, as the axes' shares say.
    let along = |value: f64, low: f64, range: f64, length: f64| {
        let share = if range > 0.0 { (value - low) / range } else { 0.5 };
        SIDE * 0.6 + share * (length - SIDE * 1.2)
    };
    let place = |[x, y]: &[f64; 2]| {
        [along(*x, low_x, wide, WIDTH), HEIGHT - along(*y, low_y, high, HEIGHT)]
    };
    plane.points.iter().map(place).collect()
}

/// A colour a class, as far apart on the circle as there is room, every other one darker.
fn colour(class: usize, n_classes: usize) -> String {
    let hue = 360.0 * class as f64 / n_classes.max(1) as f64;
    let lightness = if class.is_multiple_of(2) { 42 } else { 58 };
    format!("hsl({hue:.0},75%,{lightness}%)")
}

fn units(value: f64) -> String {
    format!("{value:.1}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_picture_lies_inside_the_map() {
        let points = vec![[-3.0, 1.0], [5.0, -2.0], [0.0, 0.0]];
        for [x, y] in places(&Plane { points, shares: [0.5, 0.1] }) {
            assert!((SIDE / 2.0..=WIDTH - SIDE / 2.0).contains(&x), "{x}");
            assert!((SIDE / 2.0..=HEIGHT - SIDE / 2.0).contains(&y), "{y}");
        }
        let point = Plane { points: vec![[0.0, 0.0]], shares: [0.0; 2] };
        assert_eq!(places(&point), [[WIDTH / 2.0, HEIGHT / 2.0]]);
    }

    #[test]
    fn classes_have_colours_of_their_own() {
        let colours: std::collections::BTreeSet<_> = (0..40).map(|c| colour(c, 40)).collect();
        assert_eq!(colours.len(), 40);
    }
}
