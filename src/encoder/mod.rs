//! What is computed: encoders as plans, and the parameters that fill them.
//!
//! To add an encoder:
//! 1. write `src/encoder/NAME.rs` with a function that returns a [`Plan`];
//! 2. add `mod NAME;` and a variant to [`Architecture`];
//! 3. add its row to [`Architecture::plan`];
//! 4. run `scripts/test encoder ops`: the contract tests walk [`Architecture::ALL`].

mod contiguous;
mod params;
mod plan;
mod resnet;

pub use contiguous::{HostMoments, HostParams, load_named, named};
pub use params::{Array, NamedArrays, Params, RunningMoments};
pub use plan::{Geometry, Init, MomentsSpec, Op, Plan, Value, WeightSpec};

use serde::{Deserialize, Serialize};

/// `[encoder]`: what learns.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The architecture: `slim-resnet` (2.8 million weights, for a CPU) or `resnet18` (11 million).
    pub architecture: Architecture,
}

/// The encoders there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Architecture {
    /// ResNet-18's shape at widths 32-64-128-256.
    #[default]
    SlimResnet,
    /// ResNet-18 with the stem for small images.
    Resnet18,
}

impl Architecture {
    /// Every kind, for tests that walk them.
    pub const ALL: [Self; 2] = [Self::SlimResnet, Self::Resnet18];

    /// The name in configuration and in snapshots.
    pub fn name(self) -> &'static str {
        match self {
            Self::SlimResnet => "slim-resnet",
            Self::Resnet18 => "resnet18",
        }
    }

    /// The kind of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Its operations.
    pub fn plan(self) -> Plan {
        match self {
            Self::SlimResnet => resnet::small_image_resnet(self.name(), [32, 64, 128, 256]),
            Self::Resnet18 => resnet::small_image_resnet(self.name(), [64, 128, 256, 512]),
        }
    }
}
