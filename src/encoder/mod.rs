//! What is computed: encoders as plans, and the parameters that fill them.
//!
//! To add an encoder:
//! 1. write `src/encoder/NAME.rs` with a function that returns a [`Plan`];
//! 2. add `mod NAME;`, and a variant to [`Architecture`] with its name both ways;
//! 3. add its rows to [`Architecture::ALL`] and [`Architecture::plan`];
//! 4. run `scripts/test --lib -- encoder ops`: the contract tests walk [`Architecture::ALL`].

mod architecture;
mod contiguous;
mod op;
mod params;
mod plan;
pub mod pretrained;
mod resnet;
mod vit;

pub use architecture::{Architecture, Patch, Stem, UnknownArchitecture};
pub use contiguous::{HostMoments, HostParams, load_named, named};
pub use op::{Geometry, Op, Value};
pub use params::{Array, NamedArrays, Params, RunningMoments};
pub use plan::{Init, MomentsSpec, Plan, WeightSpec};

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// `[encoder]`: what learns.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The architecture: `slim-resnet` (2.8 million weights, for a CPU), `resnet18` (11 million),
    /// `resnet50` (24 million), the last two with `-imagenet` at the end for images of 100 pixels
    /// and more; `vit-tiny-patchP` (5.5 million) or `vit-small-patchP` (22 million), which cut
    /// images into patches of P pixels; with `-gridG` at the end they have a class token and learned
    /// positions of G x G patches, as timm's and DINO's.
    pub architecture: Architecture,
    /// A safetensors file of weights to begin with: torchvision's, timm's or DINO's, or a snapshot.
    pub init: Option<PathBuf>,
}
