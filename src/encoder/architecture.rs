//! The encoders that can be chosen by name.

use super::plan::Plan;
use super::resnet::{Block, resnet};
use super::vit::vit;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The encoders there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Architecture {
    /// ResNet-18's shape at widths 32-64-128-256, with the stem for small images.
    #[default]
    SlimResnet,
    /// ResNet-18.
    Resnet18(Stem),
    /// ResNet-50.
    Resnet50(Stem),
    /// A vision transformer of 192 channels.
    VitTiny(Patch),
    /// A vision transformer of 384 channels.
    VitSmall(Patch),
}

/// How a residual network begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stem {
    /// A 3x3 convolution that keeps the size.
    SmallImage,
    /// A 7x7 convolution and a maximum, which together quarter the sides.
    Imagenet,
}

/// A transformer's patches: their side in pixels, 1 to 64, and, where it has a class token and
/// learned positions, how many of them are in a row, 1 to 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patch {
    side_px: u8,
    /// 0 is none.
    grid: u8,
}

impl Patch {
    /// Patches of this side, if it is allowed.
    pub const fn new(side_px: u8) -> Option<Self> {
        if side_px == 0 || side_px > 64 { None } else { Some(Self { side_px, grid: 0 }) }
    }

    /// The same in a grid of one size, if it is allowed.
    pub const fn in_grid(self, grid: u8) -> Option<Self> {
        if grid == 0 || grid > 64 { None } else { Some(Self { grid, ..self }) }
    }

    /// Their side.
    pub fn side_px(self) -> usize {
        usize::from(self.side_px)
    }

    /// How many are in a row, where that is fixed.
    pub fn grid(self) -> Option<usize> {
        (self.grid > 0).then_some(usize::from(self.grid))
    }
}

impl fmt::Display for Patch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.side_px)?;
        if self.grid > 0 { write!(f, "{GRID}{}", self.grid) } else { Ok(()) }
    }
}

impl FromStr for Patch {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let patch = |side: &str| side.parse().ok().and_then(Self::new).ok_or(());
        match text.split_once(GRID) {
            Some((side, grid)) => patch(side)?.in_grid(grid.parse().map_err(|_| ())?).ok_or(()),
            None => patch(text),
        }
    }
}

/// The name's ending of an encoder with [`Stem::Imagenet`].
const IMAGENET: &str = "-imagenet";
/// What stands between a transformer's patches and their grid.
const GRID: &str = "-grid";

impl Architecture {
    /// Every kind that takes images of any size, for tests that walk them; one patch size of the
    /// transformers'.
    pub const ALL: [Self; 7] = [
        Self::SlimResnet,
        Self::Resnet18(Stem::SmallImage),
        Self::Resnet18(Stem::Imagenet),
        Self::Resnet50(Stem::SmallImage),
        Self::Resnet50(Stem::Imagenet),
        Self::VitTiny(Patch { side_px: 4, grid: 0 }),
        Self::VitSmall(Patch { side_px: 5, grid: 0 }),
    ];

    /// Its operations.
    pub fn plan(self) -> Plan {
        let name = &self.to_string();
        let widths = [64, 128, 256, 512];
        match self {
            Self::SlimResnet => {
                resnet(name, Stem::SmallImage, Block::Basic, [2; 4], [32, 64, 128, 256])
            }
            Self::Resnet18(stem) => resnet(name, stem, Block::Basic, [2; 4], widths),
            Self::Resnet50(stem) => resnet(name, stem, Block::Bottleneck, [3, 4, 6, 3], widths),
            Self::VitTiny(patch) => vit(name, 192, patch.side_px(), patch.grid()),
            Self::VitSmall(patch) => vit(name, 384, patch.side_px(), patch.grid()),
        }
    }

    /// The side in pixels of the only images it takes, where its positions are of a grid.
    pub fn only_side_px(self) -> Option<usize> {
        match self {
            Self::VitTiny(patch) | Self::VitSmall(patch) => Some(patch.grid()? * patch.side_px()),
            Self::SlimResnet | Self::Resnet18(_) | Self::Resnet50(_) => None,
        }
    }
}

/// The name in configuration and in snapshots.
impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ending = |stem| if stem == Stem::Imagenet { IMAGENET } else { "" };
        match *self {
            Self::SlimResnet => write!(f, "slim-resnet"),
            Self::Resnet18(stem) => write!(f, "resnet18{}", ending(stem)),
            Self::Resnet50(stem) => write!(f, "resnet50{}", ending(stem)),
            Self::VitTiny(patch) => write!(f, "vit-tiny-patch{patch}"),
            Self::VitSmall(patch) => write!(f, "vit-small-patch{patch}"),
        }
    }
}

/// A name that no encoder has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no encoder: slim-resnet, resnet18, resnet50, resnet18-imagenet, resnet50-imagenet, \
     vit-tiny-patchP and vit-small-patchP are, P from 1 to 64, and the last two with -gridG at the \
     end, G from 1 to 64"
)]
pub struct UnknownArchitecture(String);

impl FromStr for Architecture {
    type Err = UnknownArchitecture;

    fn from_str(name: &str) -> Result<Self, UnknownArchitecture> {
        let patch = |patch: &str| patch.parse().ok();
        let (trunk, stem) = match name.strip_suffix(IMAGENET) {
            Some(trunk) => (trunk, Stem::Imagenet),
            None => (name, Stem::SmallImage),
        };
        let found = match (trunk, stem) {
            ("slim-resnet", Stem::SmallImage) => Some(Self::SlimResnet),
            ("resnet18", stem) => Some(Self::Resnet18(stem)),
            ("resnet50", stem) => Some(Self::Resnet50(stem)),
            _ => match name.rsplit_once("-patch") {
                Some(("vit-tiny", size)) => patch(size).map(Self::VitTiny),
                Some(("vit-small", size)) => patch(size).map(Self::VitSmall),
                _ => None,
            },
        };
        found.ok_or_else(|| UnknownArchitecture(name.to_owned()))
    }
}

impl From<Architecture> for String {
    fn from(architecture: Architecture) -> Self {
        architecture.to_string()
    }
}

impl TryFrom<String> for Architecture {
    type Error = UnknownArchitecture;

    fn try_from(name: String) -> Result<Self, UnknownArchitecture> {
        name.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_finds_its_encoder_and_no_other_name_does() {
        for architecture in Architecture::ALL {
            assert_eq!(architecture.to_string().parse(), Ok(architecture));
            assert_eq!(architecture.plan().architecture, architecture.to_string());
            assert_eq!(architecture.only_side_px(), None);
        }
        let of_grid: Architecture = "vit-small-patch16-grid14".parse().unwrap();
        assert_eq!(of_grid.to_string(), "vit-small-patch16-grid14");
        assert_eq!(of_grid.only_side_px(), Some(224));
        for name in [
            "",
            "resnet",
            "slim-resnet-imagenet",
            "vit-tiny",
            "vit-tiny-patch0",
            "vit-tiny-patch65",
            "vit-tiny-patch",
            "vit-tiny-patch4-grid0",
            "vit-tiny-patch4-grid65",
            "vit-tiny-patch0-grid7",
            "vit-tiny-grid7",
            "vit-small-patch16-imagenet",
        ] {
            let error = name.parse::<Architecture>().unwrap_err().to_string();
            assert!(error.contains(&format!("{name:?}")), "{error}");
            assert!(error.contains("vit-tiny-patchP"), "{error}");
        }
    }

    #[test]
    fn weights_have_names_of_their_own() {
        for architecture in Architecture::ALL {
            let plan = architecture.plan();
            let mut names: Vec<_> = plan.weights.iter().map(|w| &w.name).collect();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), plan.weights.len(), "{architecture}");
        }
    }
}
