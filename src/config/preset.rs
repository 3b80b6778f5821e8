//! Presets: settings that go together, chosen by one word. They lie over the documented defaults and
//! under whatever a file and the environment give.

use figment::Figment;
use figment::providers::{Format, Toml};
use serde::{Deserialize, Serialize};

/// A preset's name, `preset` in a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// A usable encoder within minutes on a few cores.
    FastCpu,
    /// A better one from an hour or more on a few cores.
    Balanced,
    /// Frames that look like those before them.
    Camera,
    /// Large batches for a card.
    Gpu,
}

impl Preset {
    /// Its settings, a file of `config/presets`. Of sections that have a `kind`, that alone: their other
    /// keys would be unknown to the kind that a file chooses instead.
    fn toml(self) -> &'static str {
        match self {
            Self::FastCpu => include_str!("../../config/presets/fast-cpu.toml"),
            Self::Balanced => include_str!("../../config/presets/balanced.toml"),
            Self::Camera => include_str!("../../config/presets/camera.toml"),
            Self::Gpu => include_str!("../../config/presets/gpu.toml"),
        }
    }
}

/// `given` over the preset that it chooses, if any.
pub(super) fn beneath(given: Figment) -> Figment {
    match given.extract_inner::<Preset>("preset") {
        Ok(preset) => Figment::from(Toml::string(preset.toml())).merge(given),
        // A name that is none is refused where the whole configuration is read.
        Err(_) => given,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, DEFAULT_TOML};
    use crate::objective;

    const EVERY: [Preset; 4] = [Preset::FastCpu, Preset::Balanced, Preset::Camera, Preset::Gpu];

    fn name(preset: Preset) -> String {
        serde_json::to_value(preset).unwrap().as_str().unwrap().to_owned()
    }

    #[test]
    fn every_preset_can_be_used_with_every_objective() {
        for preset in EVERY {
            let alone = Config::parse(&format!("preset = {:?}", name(preset))).unwrap();
            assert_eq!(alone.preset, Some(preset));
            for objective in objective::Config::every_kind() {
                let kind = serde_json::to_value(&objective).unwrap()["kind"].clone();
                let text = format!("preset = {:?}\nobjective.kind = {kind}", name(preset));
                assert_eq!(Config::parse(&text).unwrap().objective, objective, "{text}");
            }
        }
    }

    /// What a file gives wins over the preset, which wins over the defaults.
    #[test]
    fn a_preset_lies_between_the_defaults_and_what_is_given() {
        let (plain, gpu) = (Config::default(), Config::parse("preset = \"gpu\"").unwrap());
        assert_ne!(gpu.batch.images, plain.batch.images);
        assert_eq!(gpu.image, plain.image);
        let given = Config::parse("preset = \"gpu\"\nbatch.images = 48").unwrap();
        assert_eq!(given.batch.images, 48);
        assert_eq!(given.encoder, gpu.encoder);
    }

    /// Its file says that the defaults agree with it. The side of views is a share there, and unset here.
    #[test]
    fn the_preset_for_a_few_cores_is_the_defaults() {
        let plain = Config::default();
        let mut fast = Config::parse("preset = \"fast-cpu\"").unwrap();
        assert_eq!(fast.view_side_px(), plain.view_side_px());
        (fast.preset, fast.augment.side_share) = (None, None);
        assert_eq!(fast, plain);
    }

    /// A key that is given at its default is given.
    #[test]
    fn in_a_whole_copy_of_the_defaults_a_preset_chooses_what_is_commented_out() {
        let camera = Config::parse("preset = \"camera\"").unwrap();
        let copy = Config::parse(&format!("preset = \"camera\"\n{DEFAULT_TOML}")).unwrap();
        let mut expected = Config { preset: camera.preset, ..Config::default() };
        assert_ne!(camera.kafka, expected.kafka);
        expected.kafka.lag_target_records = camera.kafka.lag_target_records;
        assert_eq!(copy, expected);
    }

    #[test]
    fn a_name_that_is_none_is_refused_with_those_that_are() {
        let message = Config::parse("preset = \"fast\"").unwrap_err().to_string();
        assert!(message.contains("preset = \"fast\"") && message.contains("fast-cpu"), "{message}");
    }
}
