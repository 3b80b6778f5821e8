//! What each test image was taken for, to look at mistakes and to compare two encoders image by image.

use crate::evaluate::{Embedded, Report};
use crate::source::collection::Collection;
use serde::Serialize;

/// One test image.
#[derive(Serialize)]
struct Prediction<'a> {
    /// Its name in the collection.
    image: &'a str,
    /// Its label.
    class: &'a str,
    /// What its nearest neighbours say.
    knn: &'a str,
    /// What the linear probe says.
    linear: &'a str,
}

/// A line of JSON for each image of `test`, in the order of the collection.
pub(super) fn lines(
    report: &Report,
    embedded: &Embedded,
    test: &Collection,
) -> serde_json::Result<String> {
    let name = |class: usize| &*report.classes[class];
    let told = report.told.knn.iter().zip(&report.told.linear);
    let images = embedded.test.positions.iter().zip(&embedded.test.labels);
    let mut lines = String::new();
    for ((&position, &class), (&knn, &linear)) in images.zip(told) {
        let image = test.name(position);
        let line = Prediction { image, class: name(class), knn: name(knn), linear: name(linear) };
        lines += &serde_json::to_string(&line)?;
        lines.push('\n');
    }
    Ok(lines)
}
