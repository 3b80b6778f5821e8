//! The configuration of a run: the documented defaults, then a preset, then a file, then the
//! environment. Unknown keys and values that cannot work are refused by name before
//! anything starts.

mod memory;
mod preset;
mod run;
mod together;

pub use memory::{MemoryPlan, Part};
pub use preset::Preset;
pub use run::{LogForm, Run};

use crate::learner::optimizer;
use crate::setting::{Invalid, within};
use crate::{
    augment, batch, checkpoint, claim, decode, drift, encoder, evaluate, gate, learner, objective,
    replay, server, snapshot, source,
};
use figment::Figment;
use figment::error::Kind;
use figment::providers::{Env, Format, Serialized, Toml};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The documented defaults, `config/default.toml`.
pub const DEFAULT_TOML: &str = include_str!("../config/default.toml");
/// Environment variables are `SELFSTREAM__SECTION__KEY`.
const ENVIRONMENT_PREFIX: &str = "SELFSTREAM__";

/// Everything that a run is configured by.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Settings that go together, under those that are given.
    pub preset: Option<Preset>,
    /// The process.
    pub run: Run,
    /// What is read.
    pub source: source::Config,
    /// The cluster.
    pub kafka: source::kafka::Config,
    /// The folder source.
    pub folder: source::folder::Config,
    /// Where claim checks may lead.
    pub claims: claim::Config,
    /// Which images are taken.
    pub image: decode::Config,
    /// What the encoder sees.
    pub input: Input,
    /// How views differ.
    pub augment: augment::Config,
    /// Size and pace of steps.
    pub batch: batch::Config,
    /// The replay buffer.
    pub replay: replay::Config,
    /// What learns.
    pub encoder: encoder::Config,
    /// What it learns by.
    pub objective: objective::Config,
    /// How gradients become steps.
    pub learner: learner::Config,
    /// What an encoder must pass before it goes live.
    pub gate: gate::Config,
    /// How often it does.
    pub snapshot: snapshot::Config,
    /// Where the state of the run is kept.
    pub checkpoint: checkpoint::Config,
    /// Accuracy on labelled images of the stream.
    pub prequential: evaluate::prequential::Config,
    /// Changes of what arrives.
    pub drift: drift::Config,
    /// HTTP.
    pub server: server::Config,
}

/// `[input]`: what the encoder sees.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Input {
    /// Side of its square input.
    pub side_px: usize,
}

impl Default for Input {
    fn default() -> Self {
        Self { side_px: 32 }
    }
}

impl Input {
    fn validate(&self) -> Result<(), Invalid> {
        within("input.side_px", self.side_px, 8..=1024, "from 8 to 1024")
    }
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that cannot be read.
    #[error("configuration file {path} cannot be read")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A key that is unknown, or a value of the wrong kind.
    #[error("{key}{value} is not allowed: {problem}")]
    Form {
        /// The key, as far as it is known.
        key: String,
        /// The value after an equals sign, if there is one.
        value: String,
        /// What is wrong with it, or what is allowed.
        problem: String,
    },
    /// A value out of range.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

impl Config {
    /// The defaults, then the preset that is chosen, then `file`, then the environment.
    ///
    /// # Errors
    /// The first key or value that cannot be used.
    pub fn load(file: Option<&Path>) -> Result<Self, Error> {
        let mut layers = Figment::new();
        if let Some(path) = file {
            let unreadable = |source| Error::Unreadable { path: path.to_owned(), source };
            let text = std::fs::read_to_string(path).map_err(unreadable)?;
            layers = layers.merge(Toml::string(&text));
        }
        let layers = layers.merge(Env::prefixed(ENVIRONMENT_PREFIX).split("__"));
        Self::extract(layers)
    }

    /// The defaults, then `text`; for tests.
    ///
    /// # Errors
    /// The first key or value that cannot be used.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Self::extract(Figment::from(Toml::string(text)))
    }

    fn extract(given: Figment) -> Result<Self, Error> {
        let given = &preset::beneath(given);
        let layers = Figment::from(Serialized::defaults(Self::defaults(given))).merge(given);
        let config: Self = layers.extract().map_err(|error| explain(&layers, &error))?;
        config.validate()?;
        Ok(config)
    }

    /// The defaults of the kinds that `given` chooses: keys of one kind are none of another's.
    fn defaults(given: &Figment) -> Self {
        let mut defaults = Self::default();
        if let Some(objective) = of_kind(given, "objective") {
            defaults.objective = objective;
        }
        if let Some(optimizer) = of_kind::<optimizer::Config>(given, "learner.optimizer") {
            defaults.learner.schedule.learning_rate = optimizer.usual_learning_rate();
            defaults.learner.optimizer = optimizer;
        }
        defaults
    }

    /// Checks every value of every section.
    ///
    /// # Errors
    /// The first value that is not allowed, by key.
    pub fn validate(&self) -> Result<(), Invalid> {
        self.run.validate()?;
        match self.source.kind {
            source::Kind::Kafka => self.kafka.validate()?,
            source::Kind::Folder => self.folder.validate()?,
        }
        self.image.validate()?;
        self.claims.validate(self.image.max_bytes)?;
        self.input.validate()?;
        self.augment.validate()?;
        self.batch.validate()?;
        self.replay.validate()?;
        self.validate_input_of_encoder()?;
        self.objective.validate()?;
        self.objective.validate_batch(self.batch.images)?;
        self.validate_views_of_objective()?;
        self.learner.validate()?;
        self.gate.validate()?;
        self.snapshot.validate()?;
        self.checkpoint.validate()?;
        self.prequential.validate()?;
        self.drift.validate()?;
        self.server.validate()?;
        self.validate_deterministic()?;
        self.validate_on_drift()?;
        self.validate_memory()
    }
}

/// The defaults of the kind that `given` has under `section`; `None` where it has none that there is.
fn of_kind<T: DeserializeOwned>(given: &Figment, section: &str) -> Option<T> {
    let kind: String = given.extract_inner(&format!("{section}.kind")).ok()?;
    serde_json::from_value(serde_json::json!({ "kind": kind })).ok()
}

/// Says which key has which value, and what is allowed instead.
fn explain(layers: &Figment, error: &figment::Error) -> Error {
    let mut path = error.path.clone();
    if let Kind::UnknownField(name, _) = &error.kind {
        path.push(name.clone());
    }
    let key = path.join(".");
    let value = layers.find_value(&key).ok().map(|value| match value.as_str() {
        Some(text) => format!(" = {text:?}"),
        None => serde_json::to_string(&value).map_or_else(|_| String::new(), |v| format!(" = {v}")),
    });
    let hint = HINTS.iter().find(|(ends, _)| key.ends_with(ends));
    let problem = match (&error.kind, hint) {
        (Kind::UnknownField(_, known), _) => format!("the keys there are {}", known.join(", ")),
        (Kind::Message(_), Some((_, allowed))) => format!("it must be {allowed}"),
        (kind, _) => kind.to_string(),
    };
    Error::Form { key, value: value.unwrap_or_default(), problem }
}

const DURATION: &str = "a duration, such as \"500ms\", \"20s\" or \"5m\"";
/// What is allowed under keys whose text is read by a parser that does not say.
const HINTS: [(&str, &str); 11] = [
    ("learner.near_duplicates", learner::NEAR_DUPLICATES),
    ("server.listen", "an address and a port, such as \"127.0.0.1:8080\""),
    ("claims.timeout", DURATION),
    ("batch.max_wait", DURATION),
    ("schedule.end_after", DURATION),
    ("snapshot.every", DURATION),
    ("checkpoint.every", DURATION),
    ("server.max_batch_wait", DURATION),
    ("server.body_timeout", DURATION),
    ("server.shutdown_notice", DURATION),
    ("server.drain", DURATION),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_defaults_are_the_defaults() {
        let documented: Config = toml::from_str(DEFAULT_TOML).unwrap();
        assert_eq!(documented, Config::default());
    }

    /// Every commented key of the documented defaults is a real one.
    #[test]
    fn what_is_commented_out_can_be_set() {
        let uncommented: Vec<&str> = DEFAULT_TOML
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest) if rest.contains(" = ") && !rest.ends_with(['.', ',', ';']) => rest,
                _ => line,
            })
            // Only one of the two ends may be set, and what a ceiling must be hangs on the machine's cores.
            .filter(|line| {
                !["end_after", "max_memory_bytes"].iter().any(|key| line.starts_with(key))
            })
            .collect();
        Config::parse(&uncommented.join("\n")).unwrap();
    }

    /// Choosing a kind chooses its defaults, nested ones too; what else is given stands.
    #[test]
    fn every_kind_can_be_chosen_by_name_alone() {
        for objective in objective::Config::every_kind() {
            let name = serde_json::to_value(&objective).unwrap()["kind"].clone();
            let config = Config::parse(&format!("objective.kind = {name}")).unwrap();
            assert_eq!(config, Config { objective, ..Config::default() });
        }
        let config =
            Config::parse("objective.kind = \"moco\"\nobjective.head.hidden = 64").unwrap();
        let serde_json::Value::Object(moco) = serde_json::to_value(&config.objective).unwrap()
        else {
            panic!("an objective is a table")
        };
        assert_eq!((&moco["head"]["hidden"], &moco["head"]["norm"]), (&64.into(), &false.into()));
        let adamw = Config::parse("learner.optimizer.kind = \"adamw\"").unwrap().learner.optimizer;
        assert!(matches!(adamw, learner::optimizer::Config::AdamW { weight_decay: 0.05, .. }));
    }

    fn message(text: &str) -> String {
        Config::parse(text).unwrap_err().to_string()
    }

    /// Key, value out of range, and what the message has to say is allowed.
    const OUT_OF_RANGE: &[(&str, &str, &str)] = &[
        ("run.learner_threads", "2000", "from 0 to 1024"),
        ("run.decode_threads", "0", "from 1 to 1024"),
        ("run.view_threads", "0", "from 1 to 1024"),
        ("run.max_memory_bytes", "1000", "at least"),
        ("kafka.brokers", "\"\"", "host:port"),
        ("kafka.group", "\"\"", "a consumer group's name"),
        ("kafka.topics", "[]", "at least one topic"),
        ("kafka.dead_letter_topic", "\"images\"", "none of kafka.topics"),
        ("kafka.events_topic", "\"images\"", "none of kafka.topics"),
        ("kafka.properties.\"group.id\"", "\"x\"", "kafka.group"),
        ("image.max_bytes", "0", "at least 1"),
        ("image.max_pixels", "0", "from 1"),
        ("image.min_side_px", "0", "at least 1"),
        ("image.working_side_px", "2", "from image.min_side_px"),
        ("claims.prefixes", "[\"ftp://host/\"]", "file:///FOLDER/"),
        ("claims.max_bytes", "16777217", "from 1 to image.max_bytes, 16777216"),
        ("claims.timeout", "\"1ms\"", "from 100ms to 1h"),
        ("claims.retries", "101", "from 0 to 100"),
        ("claims.concurrency", "1", "from 2 to 1024"),
        ("input.side_px", "4", "from 8 to 1024"),
        ("augment.side_share", "1.5", "a share from 0.1 to 1"),
        ("augment.jitter_strength", "-1.0", "from 0 to 2.5"),
        ("augment.crop_area", "[0.9, 0.1]", "1"),
        ("augment.horizontal_flip_probability", "1.5", "a probability"),
        ("augment.vertical_flip_probability", "-0.5", "a probability"),
        ("augment.jitter_probability", "2.0", "a probability"),
        ("augment.greyscale_probability", "2.0", "a probability"),
        ("augment.rotation_probability", "2.0", "a probability"),
        ("augment.quarter_turn_probability", "2.0", "a probability"),
        ("augment.hue", "0.6", "0.5"),
        ("batch.images", "1", "from 2 to 8192"),
        ("batch.steps_per_batch", "0", "from 1 to batch.images"),
        ("replay.max_bytes", "10", "at least 1000000"),
        ("replay.duplicate_window", "200000", "from 0 to 100000"),
        ("image.duplicate_bits", "65", "from 0 to 64"),
        ("learner.alignment.weight", "-1.0", "from 0 to 1000"),
        ("learner.alignment.refresh_steps", "0", "at least 1"),
        ("learner.alignment.hidden", "0", "from 1 to 16384"),
        ("learner.near_duplicates", "1.5", "\"mask\""),
        ("replay.centroids", "0", "from 1 to 4096"),
        ("objective.temperature", "0.0", "from 0.01 to 10"),
        ("objective.head.hidden", "0", "from 1 to 16384"),
        ("objective.head.output", "0", "from 1 to 16384"),
        ("objective.head.layers", "9", "from 1 to 8"),
        ("learner.optimizer.momentum", "1.0", "from 0 to below 1"),
        ("learner.optimizer.weight_decay", "2.0", "from 0 to 1"),
        ("learner.schedule.learning_rate", "0.0", "from 1e-8 to 100"),
        ("learner.optimizer.max_gradient_norm", "0.0", "from 0.000001 to 1000000"),
        ("learner.schedule.restart_every_steps", "50", "more than warmup_steps"),
        ("learner.schedule.end_steps", "10", "more than warmup_steps"),
        ("learner.schedule.end_after", "\"1ms\"", "at least 1s"),
        ("gate.min_spread", "1.0", "from 0 to below 1"),
        ("gate.min_accuracy_share", "1.0", "from 0 to below 1"),
        ("snapshot.every_steps", "0", "at least 1"),
        ("snapshot.every", "\"1ms\"", "from 100ms to 1day"),
        ("snapshot.resident", "0", "from 1 to 1000"),
        ("snapshot.keep", "0", "at least 1"),
        ("snapshot.average_momentum", "1.0", "from 0 to below 1"),
        ("checkpoint.dir", "\"\"", "a folder"),
        ("checkpoint.every", "\"2days\"", "from 100ms to 1day"),
        ("checkpoint.keep", "0", "from 1 to 1000"),
        ("prequential.references", "0", "from 1 to 100000"),
        ("prequential.window", "0", "from 1 to 1000000"),
        ("drift.loss_delta", "-1.0", "from 0 to 100"),
        ("drift.loss_threshold", "0.5", "from 1 to 1000000"),
        ("server.threads", "0", "1"),
        ("server.max_batch_images", "0", "1"),
        ("server.max_pending_images", "0", "1"),
        ("server.max_images_per_request", "0", "1"),
        ("server.max_body_bytes", "0", "1"),
    ];

    /// A value out of range: the message names the key, the value and what is allowed.
    #[test]
    fn every_value_out_of_range_is_refused_by_name() {
        for (key, value, allowed) in OUT_OF_RANGE.iter().copied() {
            let message = message(&format!("{key} = {value}"));
            let bare = key.replace('"', "");
            assert!(message.contains(&bare), "{key}: {message}");
            assert!(message.contains(allowed), "{key}: {message}");
            // Some forms print as they are read (2 days as seconds): what stands is the number.
            let shown = value.trim_matches(['[', ']', '"']).trim_end_matches(".0");
            let is_duration = value.contains("ms") || value.contains("day");
            assert!(is_duration || message.contains(shown), "{key}: {message}");
        }
    }

    /// Every dotted key under `table` whose value is no table itself.
    fn keys(prefix: &str, table: &toml::Table) -> Vec<String> {
        let below = |(key, value): (&String, &toml::Value)| {
            let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            value.as_table().map_or_else(|| vec![key.clone()], |table| keys(&key, table))
        };
        table.iter().flat_map(below).collect()
    }

    /// A table is a value of the wrong kind everywhere.
    #[test]
    fn every_documented_key_refuses_a_value_of_another_kind_by_name() {
        let documented: toml::Table = toml::from_str(DEFAULT_TOML).unwrap();
        let keys = keys("", &documented);
        assert!(keys.len() > 50, "{keys:?}");
        for key in keys {
            let message = message(&format!("{key} = {{ no = 1 }}"));
            // What is chosen by a tag is refused as a whole.
            let named = key.strip_suffix(".kind").unwrap_or(&key);
            assert!(message.contains(named), "{key}: {message}");
        }
    }

    /// The same for the keys that only some objectives have.
    #[test]
    fn every_objectives_values_are_refused_by_name() {
        let cases = [
            ("byol", "momentum = 1.5", "from 0 to 1"),
            ("byol", "norm_groups = 0", "from 1 to 64"),
            ("byol", "norm_groups = 5", "a divisor of batch.images, 64"),
            ("byol", "head.output = 0", "from 1 to 16384"),
            ("byol", "predictor.hidden = 0", "from 1 to 16384"),
            ("byol", "predictor.output = 64", "objective.head.output, 128"),
            ("byol", "small_views.count = 65", "from 0 to 64"),
            ("moco-v3", "small_views.side_px = 4", "from 8 to 1024"),
            ("simclr", "small_views.crop_area = [0.0, 0.1]", "two shares"),
            ("emp", "crop_side_px = 4", "from 8 to 1024"),
            ("emp", "crops = 1", "from 2 to 256"),
            ("emp", "crop_area = [0.5, 0.25]", "two shares"),
            ("emp", "invariance = 0.0", "from 0.01"),
            ("emp", "epsilon_squared = 0.0", "from 0.0001"),
            ("emp", "head.layers = 0", "from 1 to 8"),
            ("instance", "temperature = 0.0", "from 0.01 to 10"),
            ("instance", "bank = 0", "from 1"),
            ("instance", "momentum = 1.0", "from 0 to below 1"),
            ("instance", "head.hidden = 0", "from 1"),
            ("moco", "temperature = 20.0", "from 0.01 to 10"),
            ("moco", "momentum = -0.5", "from 0 to 1"),
            ("moco", "queue = 0", "from 1"),
            ("moco", "norm_groups = 65", "from 1 to 64"),
            ("moco", "norm_groups = 3", "a divisor of batch.images, 64"),
            ("moco", "head.output = 0", "from 1"),
            ("moco-v3", "temperature = 0.0", "from 0.01 to 10"),
            ("moco-v3", "momentum = 2.0", "from 0 to 1"),
            ("moco-v3", "norm_groups = 0", "from 1 to 64"),
            ("moco-v3", "predictor.output = 7", "objective.head.output, 128"),
            ("rotation", "head.layers = 0", "from 1 to 8"),
            ("sigmoid", "temperature = 0.0", "from 0.01 to 10"),
            ("sigmoid", "head.hidden = 0", "from 1"),
            ("vicreg", "invariance = -1.0", "from 0 to 1000"),
            ("vicreg", "variance = 2000.0", "from 0 to 1000"),
            ("vicreg", "covariance = -1.0", "from 0 to 1000"),
            ("vicreg", "head.layers = 0", "from 1 to 8"),
        ];
        for (kind, setting, allowed) in cases {
            let key = format!("objective.{}", setting.split(' ').next().unwrap());
            let message = message(&format!("[objective]\nkind = \"{kind}\"\n{setting}"));
            assert!(message.contains(&key), "{kind}: {message}");
            assert!(message.contains(allowed), "{kind}: {message}");
        }
        let message = message("[objective]\nkind = \"byol\"\ntemperature = 0.2");
        assert!(message.contains("temperature") && message.contains("norm_groups"), "{message}");
    }

    #[test]
    fn an_optimiser_brings_its_rate() {
        let rate = |text: &str| Config::parse(text).unwrap().learner.schedule.learning_rate;
        assert_eq!(rate(""), 0.06);
        assert_eq!(rate("learner.optimizer.kind = \"adamw\""), 0.001);
        assert_eq!(rate("learner.optimizer.kind = \"lars\"\nlearner.optimizer.trust = 0.01"), 0.3);
        let given = "learner.optimizer.kind = \"adamw\"\nlearner.schedule.learning_rate = 0.01";
        assert_eq!(rate(given), 0.01);
    }

    #[test]
    fn an_encoder_of_a_grid_wants_its_side() {
        let text = "encoder.architecture = \"vit-small-patch16-grid14\"\ninput.side_px";
        let refused = message(&format!("{text} = 96"));
        assert!(refused.contains("input.side_px = 96") && refused.contains("224"), "{refused}");
        Config::parse(&format!("{text} = 224")).unwrap();
        let message = message(&format!("{text} = 224\naugment.side_share = 0.5"));
        assert!(
            message.contains("augment.side_share = 0.5") && message.contains("unset or 1"),
            "{message}"
        );
        for (views, key) in [
            (
                "{ kind = \"simclr\", small_views = { count = 2 } }",
                "objective.small_views.side_px = 112",
            ),
            ("{ kind = \"emp\", crop_side_px = 96 }", "objective.crop_side_px = 96"),
        ] {
            let message = self::message(&format!("objective = {views}\n{text} = 224"));
            assert!(message.contains(key) && message.contains("224"), "{message}");
        }
    }

    /// A value of the wrong kind: the message names the key and the value's kind.
    #[test]
    fn values_of_the_wrong_kind_and_unknown_names_are_refused_by_name() {
        let cases = [
            ("run.device = \"gpu\"", "run.device = \"gpu\"", "cuda"),
            ("run.instructions = \"sse\"", "run.instructions", "avx2"),
            ("run.precision = \"f16\"", "run.precision = \"f16\"", "bf16"),
            ("run.log = \"xml\"", "run.log", "json"),
            ("source.kind = \"s3\"", "source.kind", "folder"),
            ("kafka.start = \"now\"", "kafka.start", "earliest"),
            ("augment.recipe = \"moco\"", "augment.recipe", "byol"),
            ("learner.near_duplicates = \"drop\"", "learner.near_duplicates", "a weight"),
            ("learner.schedule.batch_scaling = \"root\"", "batch_scaling", "linear"),
            ("batch.pace = \"slow\"", "batch.pace", "fixed"),
            ("batch.images = \"many\"", "batch.images", "many"),
            ("replay.policy = \"all\"", "replay.policy", "reservoir"),
            ("encoder.architecture = \"vgg\"", "encoder.architecture", "resnet18"),
            ("objective.kind = \"supervised\"", "objective", "simclr"),
            ("learner.optimizer.kind = \"adam\"", "learner.optimizer", "adamw"),
            ("server.listen = \"here\"", "server.listen = \"here\"", "127.0.0.1:8080"),
            ("checkpoint.every = \"soon\"", "checkpoint.every = \"soon\"", "a duration"),
            ("kafka.topic = \"images\"", "topic", "topics"),
            ("learning.rate = 1", "learning", "learner"),
        ];
        for (text, key, allowed) in cases {
            let message = message(text);
            assert!(message.contains(key) && message.contains(allowed), "{text}: {message}");
        }
    }
}
