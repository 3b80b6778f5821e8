//! Two networks side by side: one that learns, and its moving average that it is compared with.

use super::head::{self, Ending, Head};
use super::target::Average;
use crate::encoder::{NamedArrays, Params};
use crate::setting::Invalid;
use candle_core::{Device, Result, Tensor};

/// Prefix of the averages' names in checkpoints.
const TARGET: &str = "target.heads.";

/// The heads of such a pair.
pub struct Siamese {
    heads: Params,
    projection: Head,
    /// On the side that learns alone.
    predictor: Option<Head>,
    average: Average,
}

/// Checks `[objective.head]` and `[objective.predictor]`.
///
/// # Errors
/// The first value that is not allowed, by key.
pub fn validate(head: &head::Config, predictor: &head::Config) -> std::result::Result<(), Invalid> {
    head.validate("objective.head")?;
    predictor.validate("objective.predictor")?;
    if predictor.output == head.output {
        return Ok(());
    }
    let allowed = format!("objective.head.output, {}", head.output);
    Err(Invalid::new("objective.predictor.output", predictor.output, allowed))
}

/// What the heads are made by.
pub struct Config<'a> {
    /// Features to projections.
    pub head: &'a head::Config,
    /// Projections to predictions of the other side's projections; as long as they are.
    pub predictor: Option<&'a head::Config>,
    /// How both end.
    pub ending: Ending,
}

impl Siamese {
    /// Fresh heads for features of length `feature_dim`, both sides alike.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn new(
        config: &Config<'_>,
        feature_dim: usize,
        seed: u64,
        device: &Device,
    ) -> Result<Self> {
        let Config { head, predictor, ending } = *config;
        let mut specs = vec![];
        let projection = Head::add(&mut specs, "projection", head, feature_dim, ending);
        let predictor =
            predictor.map(|config| Head::add(&mut specs, "predictor", config, head.output, ending));
        let heads = head::init(&specs, seed, device)?;
        let average = Average::of(&heads, projection.end())?;
        Ok(Self { heads, projection, predictor, average })
    }

    /// `[M, D]` features of the encoder to `[M, P]`, differentiable.
    ///
    /// # Errors
    /// Features of another length than the heads were made for.
    pub fn queries(&self, features: &Tensor) -> Result<Tensor> {
        let projections = self.projection.apply(&self.heads, features)?; // [M, P]
        match &self.predictor {
            None => Ok(projections),
            Some(predictor) => predictor.apply(&self.heads, &projections), // [M, P]
        }
    }

    /// `[M, D]` features of the target encoder to `[M, P]`, without gradient.
    ///
    /// # Errors
    /// Features of another length than the heads were made for.
    pub fn keys(&self, targets: &Tensor) -> Result<Tensor> {
        Ok(self.projection.apply(self.average.params(), targets)?.detach())
    }

    /// The heads that learn.
    pub fn heads(&self) -> &Params {
        &self.heads
    }

    /// The same, to be restored.
    pub fn heads_mut(&mut self) -> &mut Params {
        &mut self.heads
    }

    /// Moves the average, keeping the share `momentum` of it.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn follow(&mut self, momentum: f64) -> Result<()> {
        self.average.follow(&self.heads, momentum)
    }

    /// The average, as checkpoints name it.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn to_arrays(&self) -> Result<NamedArrays> {
        self.average.to_arrays(TARGET)
    }

    /// The inverse.
    ///
    /// # Errors
    /// A name that is missing or a shape that differs, by name.
    pub fn load_arrays(&mut self, arrays: &NamedArrays) -> Result<()> {
        self.average.load_arrays(TARGET, arrays)
    }
}
