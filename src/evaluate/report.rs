//! The evaluation of an encoder by labels that it never saw.

use super::labelled::{Classes, Labelled, draw, embed};
use super::supervised::Supervised;
use super::{
    Confusion, Embedder, EvaluateError, FewShot, Probe, Reference, accuracy, few_shot, linear_probe,
};
use crate::gate::monitor::rankme;
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
    /// report. Seed counters: 0 and 1 draw the images, 2 orders the probe's batches, 3 draws labels,
    /// 4 and 5 what the page shows.
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
    /// Accuracy by the means of a few labelled embeddings a class.
    pub few_shot: Vec<FewShot>,
    /// RankMe of the training images: over how many directions embeddings are spread.
    pub rankme: f64,
    /// Length of an embedding, which bounds [`Report::rankme`].
    pub dim: usize,
    /// Training images used.
    pub images_train: usize,
    /// Test images used.
    pub images_test: usize,
    /// The classes' names, sorted; chance is one in so many if they are equally frequent.
    pub classes: Vec<String>,
    /// Test images by true class (rows) and by the class that kNN found (columns), both in the
    /// order of `classes`.
    pub confusion: Confusion,
    /// What any encoder must beat, where it was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub floors: Vec<Floor>,
    /// The same encoder trained with the labels, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supervised: Option<Supervised>,
    /// kNN of snapshots along the run, oldest first, where they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub over_time: Vec<Moment>,
    /// What the accuracies are made of, image by image; not in the JSON.
    #[serde(skip)]
    pub told: Told,
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

/// What an embedder that has learned nothing reaches on the same images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Floor {
    /// `pixels` or `untrained`.
    pub name: String,
    /// The embedder's version.
    pub version: String,
    /// As [`Report::knn`].
    pub knn: f64,
    /// As [`Report::linear`].
    pub linear: f64,
    /// As [`Report::standard_error`].
    pub standard_error: StandardError,
}

/// What a snapshot of the run reached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Moment {
    /// Steps taken.
    pub step: u64,
    /// Images learned at least once.
    pub images_learned: u64,
    /// The snapshot.
    pub version: String,
    /// As [`Report::knn`], perhaps on fewer images.
    pub knn: f64,
    /// Its standard error.
    pub standard_error: f64,
}

/// What either probe takes each test image for, as indices of [`Report::classes`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    /// By its nearest neighbours.
    pub knn: Vec<usize>,
    /// By the linear probe.
    pub linear: Vec<usize>,
}

/// The images of an evaluation, embedded by one version.
#[derive(Clone, Debug)]
pub struct Embedded {
    /// The encoder's version.
    pub version: String,
    /// The classes of both.
    pub classes: Classes,
    /// The reference.
    pub train: Labelled,
    /// What is told by it.
    pub test: Labelled,
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
    let mut report = Embedded::new(train, test, embedder, config)?.report(config.seed)?;
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

impl Embedded {
    /// Embeds what `config` asks for of both collections.
    ///
    /// # Errors
    /// As [`evaluate`].
    pub fn new(
        train: &Collection,
        test: &Collection,
        embedder: &mut dyn Embedder,
        config: &Config,
    ) -> Result<Self, EvaluateError> {
        let classes = Classes::of(&[train, test])?;
        let train_positions = draw(train, config.limit_train_images, config.seed, 0);
        let test_positions = draw(test, config.limit_test_images, config.seed, 1);
        let train = embed(train, &train_positions, &classes, embedder)?;
        let test = embed(test, &test_positions, &classes, embedder)?;
        Ok(Self { version: embedder.version().to_owned(), classes, train, test })
    }

    /// Tells the classes of the test images. The report's time is left at zero.
    ///
    /// # Errors
    /// If the two differ in dimension.
    pub fn report(&self, seed: u64) -> Result<Report, EvaluateError> {
        let Self { version, classes, train, test } = self;
        let n_classes = classes.names().len();
        let told = self.told(seed)?;
        let confusion = Confusion::new(&told.knn, &test.labels, n_classes)?;
        let (knn, linear) = (confusion.accuracy(), accuracy(&told.linear, &test.labels)?);
        Ok(Report {
            version: version.clone(),
            knn,
            linear,
            standard_error: self.standard_errors(knn, linear),
            few_shot: few_shot(train, test, n_classes, seed)?,
            rankme: rankme(&train.embeddings.unit_rows()),
            dim: train.embeddings.dim(),
            images_train: train.labels.len(),
            images_test: test.labels.len(),
            classes: classes.names().to_vec(),
            confusion,
            floors: vec![],
            supervised: None,
            over_time: vec![],
            told,
            seconds: 0.0,
        })
    }

    /// The class of each test image by either probe.
    fn told(&self, seed: u64) -> Result<Told, EvaluateError> {
        let Self { train, test, .. } = self;
        let mut rng = seed::rng(seed, Purpose::Evaluate, &[2]);
        let probe = Probe::train(&train.embeddings, &train.labels, &mut rng)?;
        Ok(Told {
            knn: Reference::new(&train.embeddings, &train.labels)?.classify(&test.embeddings)?,
            linear: probe.classify(&test.embeddings)?,
        })
    }

    /// What this embedder reaches, as a floor called `name`.
    ///
    /// # Errors
    /// If the two differ in dimension.
    pub fn floor(&self, name: &str, seed: u64) -> Result<Floor, EvaluateError> {
        let told = self.told(seed)?;
        let knn = accuracy(&told.knn, &self.test.labels)?;
        let linear = accuracy(&told.linear, &self.test.labels)?;
        let standard_error = self.standard_errors(knn, linear);
        let (name, version) = (name.to_owned(), self.version.clone());
        Ok(Floor { name, version, knn, linear, standard_error })
    }

    /// Which classes kNN takes for which.
    ///
    /// # Errors
    /// If the two differ in dimension.
    pub fn confusion(&self) -> Result<Confusion, EvaluateError> {
        let Self { classes, train, test, .. } = self;
        let found = Reference::new(&train.embeddings, &train.labels)?.classify(&test.embeddings)?;
        Confusion::new(&found, &test.labels, classes.names().len())
    }

    /// Accuracy of the linear probe.
    ///
    /// # Errors
    /// If the two differ in dimension.
    pub fn linear(&self, seed: u64) -> Result<f64, EvaluateError> {
        let Self { train, test, .. } = self;
        let mut rng = seed::rng(seed, Purpose::Evaluate, &[2]);
        linear_probe(&train.embeddings, &train.labels, &test.embeddings, &test.labels, &mut rng)
    }

    /// The standard error of an accuracy on the test images.
    pub fn standard_error(&self, accuracy: f64) -> f64 {
        (accuracy * (1.0 - accuracy) / self.test.labels.len().max(1) as f64).sqrt()
    }

    fn standard_errors(&self, knn: f64, linear: f64) -> StandardError {
        let (knn, linear) = (self.standard_error(knn), self.standard_error(linear));
        StandardError { knn, linear }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::fixtures::{coloured, png};
    use crate::evaluate::{Embeddings, Example, RawPixels};

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
        assert_eq!(json["confusion"], serde_json::json!([[4, 0, 0], [0, 4, 0], [0, 0, 4]]));
        let few = json["few_shot"].as_array().unwrap();
        let labels = few.iter().map(|few| few["labels_per_class"].as_u64().unwrap());
        assert!(labels.eq([1, 5, 10]));
        assert!(few.iter().all(|few| few["accuracy"] == 1.0 && few["standard_error"] == 0.0));
        // Three colours are three directions at most; shades of them add next to nothing.
        assert!((1.0..=3.1).contains(&json["rankme"].as_f64().unwrap()), "{json}");
        assert_eq!(json["dim"], 768);
        for absent in ["floors", "supervised", "over_time"] {
            assert!(json.get(absent).is_none(), "{absent} was not asked for");
        }
        assert_eq!(report.told.knn.len(), 12);
        let written = Report { told: Told::default(), ..report.clone() };
        assert_eq!(serde_json::from_value::<Report>(json).unwrap(), written);
        assert!(report.seconds > 0.0);
    }

    #[test]
    fn a_floor_is_what_the_same_embedder_reports() {
        let folder = tempfile::tempdir().unwrap();
        let collection = coloured(folder.path(), 3);
        let config = Config::default();
        let embedded = Embedded::new(&collection, &collection, &mut RawPixels, &config).unwrap();
        let report = embedded.report(0).unwrap();
        let floor = embedded.floor("pixels", 0).unwrap();
        assert_eq!((floor.knn, floor.linear), (report.knn, report.linear));
        assert_eq!((floor.standard_error, floor.version), (report.standard_error, report.version));
        assert!(report.few_shot.iter().all(|few| few.labels_per_class == 1), "3 images a class");
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
