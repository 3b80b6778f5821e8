//! The evaluation of an encoder by labels that it never saw.

use super::labelled::{Classes, Labelled, draw, embed};
use super::{Embedder, EvaluateError, knn_probe, linear_probe};
use crate::seed::{self, Purpose};
use crate::setting::{self, Invalid};
use crate::source::collection::Collection;
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// How much is evaluated.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// At most so many training images are used, drawn at random; all if it is not set.
    pub limit_train_images: Option<usize>,
    /// At most so many test images are used, drawn at random; all if it is not set.
    pub limit_test_images: Option<usize>,
    /// Seeds the draws and the order of the linear probe's batches: the same seed gives the same
    /// report.
    pub seed: u64,
}

impl Config {
    /// Checks every value.
    ///
    /// # Errors
    /// The first value that cannot be used, under its key `evaluate.*`.
    pub fn validate(&self) -> Result<(), Invalid> {
        for (key, limit) in [
            ("evaluate.limit_train_images", self.limit_train_images),
            ("evaluate.limit_test_images", self.limit_test_images),
        ] {
            setting::within(key, limit.unwrap_or(1), 1.., "at least 1")?;
        }
        Ok(())
    }
}

/// What an evaluation found; accuracies are fractions of the test images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The encoder's version.
    pub version: String,
    /// Accuracy of the weighted 20 nearest training images by cosine similarity.
    pub knn: f64,
    /// Accuracy of a linear classifier trained on the training images' embeddings.
    pub linear: f64,
    /// How uncertain both are, by the number of test images alone.
    pub standard_error: StandardError,
    /// Training images used.
    pub images_train: usize,
    /// Test images used.
    pub images_test: usize,
    /// The classes' names, sorted; chance is one in so many if they are equally frequent.
    pub classes: Vec<String>,
    /// Time taken, reading and embedding included.
    pub seconds: f64,
}

/// Standard errors of a report's accuracies: `sqrt(p (1 - p) / N)` of a binomial proportion.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StandardError {
    /// Of [`Report::knn`].
    pub knn: f64,
    /// Of [`Report::linear`].
    pub linear: f64,
}

/// Embeds both collections and tells the classes of `test` by those of `train`.
///
/// # Errors
/// If an image has no label, cannot be read or decoded, or the embedder fails; see [`embed`].
pub fn evaluate(
    train: &Collection,
    test: &Collection,
    embedder: &mut dyn Embedder,
    config: &Config,
) -> Result<Report, EvaluateError> {
    let started = Instant::now();
    let classes = Classes::of(&[train, test])?;
    let train_positions = draw(train, config.limit_train_images, config.seed, 0);
    let test_positions = draw(test, config.limit_test_images, config.seed, 1);
    let train = embed(train, &train_positions, &classes, embedder)?;
    let test = embed(test, &test_positions, &classes, embedder)?;
    let knn = knn_probe(&train.embeddings, &train.labels, &test.embeddings, &test.labels)?;
    let linear = linear(&train, &test, config.seed)?;
    let standard_error = |p: f64| (p * (1.0 - p) / test.labels.len() as f64).sqrt();
    Ok(Report {
        version: embedder.version().to_owned(),
        knn,
        linear,
        standard_error: StandardError { knn: standard_error(knn), linear: standard_error(linear) },
        images_train: train.labels.len(),
        images_test: test.labels.len(),
        classes: classes.names().to_vec(),
        seconds: started.elapsed().as_secs_f64(),
    })
}

fn linear(train: &Labelled, test: &Labelled, seed: u64) -> Result<f64, EvaluateError> {
    let mut rng = seed::rng(seed, Purpose::Evaluate, &[2]);
    linear_probe(&train.embeddings, &train.labels, &test.embeddings, &test.labels, &mut rng)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::{Embeddings, Example, RawPixels};
    use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
    use std::path::Path;

    const COLOURS: [(&str, [u8; 3]); 3] =
        [("blue", [20, 20, 220]), ("green", [20, 220, 20]), ("red", [220, 20, 20])];

    fn png(colour: [u8; 3]) -> Vec<u8> {
        let mut bytes = Vec::new();
        PngEncoder::new(&mut bytes)
            .write_image(&colour.repeat(12 * 8), 12, 8, ExtendedColorType::Rgb8)
            .unwrap();
        bytes
    }

    /// `n_each` images of each colour, which is their class, every one a shade of it.
    fn coloured(folder: &Path, n_each: u8) -> Collection {
        for (name, colour) in COLOURS {
            std::fs::create_dir_all(folder.join(name)).unwrap();
            for index in 0..n_each {
                let shade = colour.map(|byte| byte + index);
                std::fs::write(folder.join(name).join(format!("{index:02}.png")), png(shade))
                    .unwrap();
            }
        }
        Collection::open(folder).unwrap()
    }

    #[test]
    fn colours_are_told_apart_and_the_report_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let train = coloured(&folder.path().join("train"), 30);
        let test = coloured(&folder.path().join("test"), 4);
        let report = evaluate(&train, &test, &mut RawPixels, &Config::default()).unwrap();
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["version"], "raw-pixels-16");
        assert_eq!((json["knn"].as_f64(), json["linear"].as_f64()), (Some(1.0), Some(1.0)));
        assert_eq!(json["standard_error"], serde_json::json!({"knn": 0.0, "linear": 0.0}));
        assert_eq!(json["images_train"], 90);
        assert_eq!(json["images_test"], 12);
        assert_eq!(json["classes"], serde_json::json!(["blue", "green", "red"]));
        assert!(report.seconds > 0.0);
    }

    #[test]
    fn limits_are_kept_and_drawn_by_seed() {
        let folder = tempfile::tempdir().unwrap();
        let collection = coloured(folder.path(), 30);
        let config = Config { limit_train_images: Some(60), limit_test_images: Some(7), seed: 1 };
        let report = evaluate(&collection, &collection, &mut RawPixels, &config).unwrap();
        assert_eq!((report.images_train, report.images_test), (60, 7));
        let drawn = draw(&collection, Some(45), 1, 0);
        assert_eq!(drawn, draw(&collection, Some(45), 1, 0));
        assert_ne!(drawn, draw(&collection, Some(45), 2, 0));
        assert_ne!(drawn, draw(&collection, Some(45), 1, 1));
        assert!(drawn.is_sorted() && drawn.windows(2).all(|pair| pair[0] != pair[1]));
        assert!(draw(&collection, Some(1000), 1, 0).into_iter().eq(0..90));
    }

    #[test]
    fn an_image_that_cannot_be_used_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let good = coloured(&folder.path().join("good"), 2);
        let bad = folder.path().join("bad/red/broken.jpg");
        std::fs::create_dir_all(bad.parent().unwrap()).unwrap();
        std::fs::write(&bad, b"no image").unwrap();
        let bad = Collection::open(folder.path().join("bad")).unwrap();
        let error = evaluate(&good, &bad, &mut RawPixels, &Config::default()).unwrap_err();
        assert!(error.to_string().contains("red/broken.jpg"), "{error}");
        std::fs::write(folder.path().join("good/loose.png"), png([0; 3])).unwrap();
        let loose = Collection::open(folder.path().join("good")).unwrap();
        let error = evaluate(&good, &loose, &mut RawPixels, &Config::default()).unwrap_err();
        assert!(matches!(error, EvaluateError::Unlabelled { name, .. } if name == "loose.png"));
    }

    /// Gives no number for the second image of a batch.
    struct Broken;

    impl Embedder for Broken {
        fn version(&self) -> &str {
            "broken"
        }

        fn embed(&mut self, images: &[Example]) -> Result<Embeddings, EvaluateError> {
            let mut values = vec![1.0; images.len()];
            values[1] = f32::NAN;
            Embeddings::new(values, 1)
        }
    }

    #[test]
    fn an_embedding_that_is_no_number_is_named_by_its_image() {
        let folder = tempfile::tempdir().unwrap();
        let collection = coloured(folder.path(), 3);
        let error =
            evaluate(&collection, &collection, &mut Broken, &Config::default()).unwrap_err();
        assert!(error.to_string().contains("blue/01.png"), "{error}");
    }

    #[test]
    fn limits_of_nothing_are_refused_by_their_key() {
        assert_eq!(Config::default().validate(), Ok(()));
        let config = Config { limit_test_images: Some(0), ..Config::default() };
        assert_eq!(config.validate().unwrap_err().key, "evaluate.limit_test_images");
    }
}
