//! Losses: what makes an encoder learn from unlabelled views.
//!
//! An objective says which views it wants and who sees them, and makes a scalar loss of their
//! features. It owns its heads. It changes nothing in `loss`; what moves without a gradient (moving
//! averages, queues) moves in `after_step` and goes into checkpoints by `state`. The moving average
//! of the encoder itself is the learner's, which makes one where [`Objective::target`] asks for it.
//!
//! To add an objective:
//! 1. write `src/objective/NAME.rs`: paper and equations, `Config`, the [`Objective`] impl, the
//!    pure mathematics as free functions, tests; heads, averages and queues are in `parts/`;
//! 2. add `mod NAME;` and a variant to [`Config`];
//! 3. add its rows to [`Config::every_kind`], [`Config::validate`], [`Config::build`] and
//!    [`Config::demand`];
//! 4. give its loss a case in `tests/golden/objective.py`;
//! 5. run `scripts/test --lib -- objective trainer`: the contract tests walk every kind, and `every_form` of
//!    it: add those that ask for other views.

mod batch;
mod demand;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod loops;
pub mod parts;

mod byol;
mod emp;
mod instance;
mod moco;
mod moco_v3;
mod rotation;
mod sigmoid;
mod simclr;
mod vicreg;

pub use batch::{Batch, SeenBy, Views};
pub use demand::Demand;

use crate::augment::Side;
use crate::encoder::{NamedArrays, Params};
use crate::setting::Invalid;
use candle_core::{Device, Result, Tensor};
use parts::target::Target;
use serde::{Deserialize, Serialize};

/// How much of a run lies behind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Elapsed {
    /// Steps taken.
    pub steps: u64,
    /// The share of the run, from 0 to 1; 0 where no end is declared.
    pub share: f64,
}

/// A self-supervised loss with the heads it trains.
pub trait Objective: Send {
    /// The groups of views to make of each image.
    fn views(&self) -> Vec<Views>;

    /// The moving-average encoder that it compares with, if it does, in the step that the run has
    /// come to.
    fn target(&self, _elapsed: Elapsed) -> Option<Target> {
        None
    }

    /// The loss, a scalar, differentiable in the features and in the heads' weights.
    ///
    /// # Errors
    /// Features of another shape than [`Batch`] says.
    fn loss(&self, batch: &Batch<'_>) -> Result<Tensor>;

    /// Whether its loss has [`Batch::negatives`] in it.
    fn weighs_negatives(&self) -> bool {
        false
    }

    /// The heads that learn with the encoder.
    fn heads(&self) -> &Params;

    /// The same, to be restored.
    fn heads_mut(&mut self) -> &mut Params;

    /// Called once after each optimiser step, with the batch that it was taken on: averages and
    /// queues move here.
    ///
    /// # Errors
    /// Whatever tensor operations report.
    fn after_step(&mut self, _batch: &Batch<'_>, _elapsed: Elapsed) -> Result<()> {
        Ok(())
    }

    /// What `after_step` moves, by name.
    ///
    /// # Errors
    /// Whatever the device reports.
    fn state(&self) -> Result<NamedArrays> {
        Ok(NamedArrays::new())
    }

    /// Takes what `state` gave.
    ///
    /// # Errors
    /// An array that is missing or of another shape, by name.
    fn load_state(&mut self, _arrays: &NamedArrays) -> Result<()> {
        Ok(())
    }
}

/// `[objective]`: the loss, chosen by `kind`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Config {
    /// BYOL: predicts what a moving average of itself makes of another view.
    Byol(byol::Config),
    /// EMP-SSL: the coding rate of many crops of few images.
    Emp(emp::Config),
    /// Each image its own class, by a memory bank.
    Instance(instance::Config),
    /// MoCo v2: contrast with a queue of a moving average's projections.
    Moco(moco::Config),
    /// MoCo v3: contrast within the batch, with a predictor.
    MocoV3(moco_v3::Config),
    /// Which way up a view was turned.
    Rotation(rotation::Config),
    /// Each pair of views, same image or not.
    Sigmoid(sigmoid::Config),
    /// SimCLR's NT-Xent.
    Simclr(simclr::Config),
    /// VICReg: variance, invariance, covariance.
    Vicreg(vicreg::Config),
}

impl Default for Config {
    fn default() -> Self {
        Self::Sigmoid(sigmoid::Config::default())
    }
}

impl Config {
    /// One of every kind at its defaults, for tests that walk them.
    pub fn every_kind() -> Vec<Self> {
        vec![
            Self::Byol(byol::Config::default()),
            Self::Emp(emp::Config::default()),
            Self::Instance(instance::Config::default()),
            Self::Moco(moco::Config::default()),
            Self::MocoV3(moco_v3::Config::default()),
            Self::Rotation(rotation::Config::default()),
            Self::Sigmoid(sigmoid::Config::default()),
            Self::Simclr(simclr::Config::default()),
            Self::Vicreg(vicreg::Config::default()),
        ]
    }

    /// Every kind, and the forms of a kind that ask for other views.
    #[cfg(test)]
    pub(crate) fn every_form() -> Vec<Self> {
        let small = "small_views = { count = 2, side_px = 8 }";
        let forms = [
            "kind = \"moco\"\nsymmetric = false".to_owned(),
            "kind = \"emp\"\ncrops = 3\ncrop_side_px = 8".to_owned(),
            format!("kind = \"simclr\"\n{small}"),
            format!("kind = \"moco-v3\"\n{small}"),
            format!("kind = \"byol\"\nnorm_groups = 2\n{small}"),
        ];
        let parse = |text: &String| toml::from_str(text).expect("a form that there is");
        Self::every_kind().into_iter().chain(forms.iter().map(parse)).collect()
    }

    /// Checks every value.
    ///
    /// # Errors
    /// The first value that is not allowed, by key.
    pub fn validate(&self) -> std::result::Result<(), Invalid> {
        match self {
            Self::Byol(config) => config.validate(),
            Self::Emp(config) => config.validate(),
            Self::Instance(config) => config.validate(),
            Self::Moco(config) => config.validate(),
            Self::MocoV3(config) => config.validate(),
            Self::Rotation(config) => config.validate(),
            Self::Sigmoid(config) => config.validate(),
            Self::Simclr(config) => config.validate(),
            Self::Vicreg(config) => config.validate(),
        }
    }

    /// Checks what it asks of the size of a batch.
    ///
    /// # Errors
    /// A number of norm groups that don't divide it.
    pub fn validate_batch(&self, images: usize) -> std::result::Result<(), Invalid> {
        let groups = match self {
            Self::Byol(config) => config.norm_groups,
            Self::Moco(config) => config.norm_groups,
            Self::MocoV3(config) => config.norm_groups,
            Self::Emp(_)
            | Self::Instance(_)
            | Self::Rotation(_)
            | Self::Sigmoid(_)
            | Self::Simclr(_)
            | Self::Vicreg(_) => 1,
        };
        if images.is_multiple_of(groups) {
            return Ok(());
        }
        let allowed = format!("a divisor of batch.images, {images}");
        Err(Invalid::new("objective.norm_groups", groups, allowed))
    }

    /// The key and the side of views whose side it chooses itself.
    pub fn own_side(&self) -> Option<(&'static str, Side)> {
        let small_views = match self {
            Self::Byol(config) => &config.small_views,
            Self::MocoV3(config) => &config.small_views,
            Self::Simclr(config) => &config.small_views,
            Self::Emp(config) => return Some(("objective.crop_side_px", config.crop_side())),
            Self::Instance(_)
            | Self::Moco(_)
            | Self::Rotation(_)
            | Self::Sigmoid(_)
            | Self::Vicreg(_) => return None,
        };
        (small_views.count > 0).then(|| ("objective.small_views.side_px", small_views.side()))
    }

    /// The objective for features of length `feature_dim`.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn build(
        &self,
        feature_dim: usize,
        seed: u64,
        device: &Device,
    ) -> Result<Box<dyn Objective>> {
        Ok(match self {
            Self::Byol(config) => Box::new(byol::Byol::new(config, feature_dim, seed, device)?),
            Self::Emp(config) => Box::new(emp::Emp::new(config, feature_dim, seed, device)?),
            Self::Instance(config) => {
                Box::new(instance::Instance::new(config, feature_dim, seed, device)?)
            }
            Self::Moco(config) => Box::new(moco::Moco::new(config, feature_dim, seed, device)?),
            Self::MocoV3(config) => {
                Box::new(moco_v3::MocoV3::new(config, feature_dim, seed, device)?)
            }
            Self::Rotation(config) => {
                Box::new(rotation::Rotation::new(config, feature_dim, seed, device)?)
            }
            Self::Sigmoid(config) => {
                Box::new(sigmoid::Sigmoid::new(config, feature_dim, seed, device)?)
            }
            Self::Simclr(config) => {
                Box::new(simclr::Simclr::new(config, feature_dim, seed, device)?)
            }
            Self::Vicreg(config) => {
                Box::new(vicreg::Vicreg::new(config, feature_dim, seed, device)?)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

    const N_IMAGES: usize = 8;
    const FEATURE_DIM: usize = 24;
    const IDS: [u64; N_IMAGES] = [0, 1, 2, 3, 4, 5, 6, 7];

    /// Features of `views_per_image` views that no objective may find already solved.
    fn toy_features(views_per_image: usize, seed: usize) -> Tensor {
        let n_rows = views_per_image * N_IMAGES;
        let values = (0..n_rows * FEATURE_DIM)
            .map(|i| (((i + seed) * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0)
            .collect();
        Tensor::from_vec(values, (n_rows, FEATURE_DIM), &Device::Cpu).unwrap()
    }

    /// Toy features of each group that the encoder, or the target, sees.
    fn toy_groups(objective: &dyn Objective, is_seen: fn(SeenBy) -> bool) -> Vec<Tensor> {
        let views = objective.views();
        let seen = views.iter().enumerate().filter(|(_, views)| is_seen(views.seen_by));
        seen.map(|(index, views)| toy_features(views.group.views_per_image, index)).collect()
    }

    /// An objective with a batch for it, whose features can be moved.
    struct Toy {
        objective: Box<dyn Objective>,
        features: Vec<Var>,
        targets: Vec<Tensor>,
    }

    impl Toy {
        fn new(config: &Config) -> Self {
            let objective = config.build(FEATURE_DIM, 1, &Device::Cpu).unwrap();
            let features = toy_groups(&*objective, SeenBy::encoder);
            let features = features.iter().map(|group| Var::from_tensor(group).unwrap());
            let features = features.collect();
            let targets = toy_groups(&*objective, SeenBy::target);
            Self { objective, features, targets }
        }

        fn with_batch<R>(&mut self, work: impl FnOnce(&mut dyn Objective, &Batch<'_>) -> R) -> R {
            let features: Vec<Tensor> =
                self.features.iter().map(|group| group.as_tensor().clone()).collect();
            let targets = &self.targets;
            let batch = Batch {
                features: &features,
                targets,
                n_images: N_IMAGES,
                ids: &IDS,
                negatives: None,
            };
            work(&mut *self.objective, &batch)
        }

        fn loss(&mut self) -> Tensor {
            self.with_batch(|objective, batch| objective.loss(batch).unwrap())
        }
    }

    #[test]
    fn every_objective_is_finite_and_its_gradient_reaches_features_and_heads() {
        for config in Config::every_form() {
            config.validate().unwrap();
            let mut toy = Toy::new(&config);
            let loss = toy.loss();
            assert!(loss.to_scalar::<f32>().unwrap().is_finite(), "{config:?}");
            let gradients = loss.backward().unwrap();
            let norm = |tensor: &Tensor| -> f32 {
                let gradient = gradients.get(tensor).expect("a gradient");
                gradient.sqr().unwrap().sum_all().unwrap().to_scalar().unwrap()
            };
            for features in &toy.features {
                assert!(norm(features) > 0.0, "{config:?}: features");
            }
            let heads = toy.objective.heads();
            for (spec, weight) in heads.specs.iter().zip(&heads.weights) {
                assert!(norm(weight) > 0.0, "{config:?}: {}", spec.name);
            }
        }
    }

    #[test]
    fn every_objective_falls_when_features_follow_its_gradient() {
        for config in Config::every_form() {
            let mut toy = Toy::new(&config);
            let mut losses = vec![];
            for _ in 0..30 {
                let loss = toy.loss();
                losses.push(loss.to_scalar::<f32>().unwrap());
                let gradients = loss.backward().unwrap();
                for features in &toy.features {
                    // Steps of one length, as losses differ in scale.
                    let gradient = gradients.get(features).unwrap();
                    let norm = gradient.sqr().unwrap().sum_all().unwrap().sqrt().unwrap();
                    let step = gradient.broadcast_div(&norm).unwrap();
                    features.set(&features.sub(&step).unwrap()).unwrap();
                }
            }
            let least = losses[0] - 0.2 * losses[0].abs();
            assert!(losses[29] < least, "{config:?}: {losses:?}");
        }
    }

    /// Weights of negatives change the loss of those that say so, and of no others.
    #[test]
    fn whoever_weighs_negatives_says_so() {
        let all_alike = parts::negatives::NegativeWeights::new(&[7; N_IMAGES], 0, 0.0);
        for config in Config::every_form() {
            let loss = |negatives| {
                let mut toy = Toy::new(&config);
                toy.with_batch(|objective, batch| {
                    // Queues hold other images then, and what they look like.
                    let ids = IDS.map(|id| id + 100);
                    let before = Batch { ids: &ids, negatives, ..*batch };
                    objective.after_step(&before, Elapsed::default()).unwrap();
                    let batch = Batch { negatives, ..*batch };
                    objective.loss(&batch).unwrap().to_scalar::<f32>().unwrap()
                })
            };
            let weighs = Toy::new(&config).objective.weighs_negatives();
            assert_eq!(loss(Some(&all_alike)) != loss(None), weighs, "{config:?}");
        }
    }

    /// `loss` changes nothing, `after_step` all that `state` names; both go through arrays.
    #[test]
    fn what_moves_after_a_step_is_the_state_and_nothing_else_moves() {
        for config in Config::every_form() {
            let mut toy = Toy::new(&config);
            // The encoder's step moved the heads away from their averages.
            for weight in &toy.objective.heads().weights {
                weight.set(&(weight.as_tensor() * 1.5).unwrap()).unwrap();
            }
            let before = toy.objective.state().unwrap();
            let first = toy.loss().to_scalar::<f32>().unwrap();
            assert_eq!(toy.objective.state().unwrap(), before, "{config:?}: the loss moved it");
            assert_eq!(toy.loss().to_scalar::<f32>().unwrap(), first, "{config:?}");
            let heads = toy.objective.heads().to_arrays("").unwrap();
            toy.with_batch(|objective, batch| {
                objective.after_step(batch, Elapsed::default()).unwrap()
            });
            let after = toy.objective.state().unwrap();
            assert_eq!(toy.objective.heads().to_arrays("").unwrap(), heads, "{config:?}");
            let is_stateless = before.is_empty();
            assert_eq!(before == after, is_stateless, "{config:?}");
            let has_target = toy.objective.target(Elapsed::default()).is_some();
            assert!(!has_target || !is_stateless, "{config:?}");
            let sees = |views: &Views| views.seen_by.target();
            assert_eq!(toy.objective.views().iter().any(sees), has_target, "{config:?}");

            let mut restored = Toy::new(&config);
            restored.objective.heads_mut().load_arrays("", &heads).unwrap();
            restored.objective.load_state(&after).unwrap();
            assert_eq!(restored.objective.state().unwrap(), after, "{config:?}");
            let losses = [toy.loss(), restored.loss()].map(|loss| loss.to_scalar::<f32>().unwrap());
            assert_eq!(losses[0], losses[1], "{config:?}");
            // The last: fingerprints, a queue's first array, may be lacking.
            if let Some(name) = after.keys().next_back().cloned() {
                let mut lacking = after.clone();
                lacking.remove(&name);
                let error = restored.objective.load_state(&lacking).unwrap_err().to_string();
                assert!(error.contains(&name), "{error}");
            }
        }
    }
}
