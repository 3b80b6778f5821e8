//! Kafka: a consumer group over one or more topics.

mod assignment;
mod client;
mod commit;
mod consumer;
mod context;
mod extent;
pub mod headers;
mod holding;
mod leave;
mod metadata;
mod pace;
mod start;

pub use start::StartAt;

use super::{Link, Source};
use crate::setting::{Invalid, within};
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// `[kafka]`: the cluster and what is read of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Bootstrap servers, `host:port`, separated by commas.
    pub brokers: String,
    /// The topics whose messages are images; one that begins with `^` is a regular expression.
    pub topics: Vec<String>,
    /// The consumer group.
    pub group: String,
    /// A static member's name: a restart within the session timeout keeps its partitions.
    pub instance_id: Option<String>,
    /// How members of the group agree on who reads what.
    pub group_protocol: GroupProtocol,
    /// Where a partition that nobody has read begins.
    pub start: StartAt,
    /// Records that may wait at the broker: where the topic is faster than the learner, records are
    /// skipped evenly to hold the lag there. Unset, none is skipped.
    pub lag_target_records: Option<u64>,
    /// The lag from which on the alarm is raised.
    pub lag_alarm_records: u64,
    /// Where refused records go; unset, they are counted and dropped.
    pub dead_letter_topic: Option<String>,
    /// Where events go, too; unset, they go nowhere else than to who listens.
    pub events_topic: Option<String>,
    /// Any librdkafka property, TLS and SASL included, for every client; wins over ours.
    pub properties: BTreeMap<String, String>,
}

/// How members of the group agree on who reads what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GroupProtocol {
    /// Members agree among themselves.
    #[default]
    Classic,
    /// The broker assigns (KIP-848); brokers from Kafka 4.0.
    Consumer,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            brokers: "localhost:9092".to_owned(),
            topics: vec!["images".to_owned()],
            group: "selfstream".to_owned(),
            instance_id: None,
            group_protocol: GroupProtocol::default(),
            start: StartAt::default(),
            lag_target_records: None,
            lag_alarm_records: 100_000,
            dead_letter_topic: None,
            events_topic: None,
            properties: BTreeMap::new(),
        }
    }
}

/// Properties that the delivery promise rests on.
const OURS_ALONE: [(&str, &str); 6] = [
    ("enable.auto.commit", "offsets are committed after the checkpoint that holds them"),
    ("enable.auto.offset.store", "offsets are committed after the checkpoint that holds them"),
    ("auto.offset.reset", "lost data is an event; set kafka.start instead"),
    ("statistics.interval.ms", "they say every second which commits the broker has"),
    ("group.id", "set kafka.group instead"),
    ("group.instance.id", "set kafka.instance_id instead"),
];

impl Config {
    /// Checks every value.
    ///
    /// # Errors
    /// The first value that is not allowed, by key.
    pub fn validate(&self) -> Result<(), Invalid> {
        let filled = |key: &str, value: &str, allowed: &str| {
            if value.trim().is_empty() { Err(Invalid::new(key, "\"\"", allowed)) } else { Ok(()) }
        };
        filled("kafka.brokers", &self.brokers, "host:port, or several separated by commas")?;
        filled("kafka.group", &self.group, "a consumer group's name")?;
        if self.topics.is_empty() {
            return Err(Invalid::new("kafka.topics", "[]", "at least one topic"));
        }
        for topic in &self.topics {
            filled("kafka.topics", topic, "names of topics")?;
        }
        let allowed = "at least 1, or unset";
        within("kafka.lag_target_records", self.lag_target_records.unwrap_or(1), 1.., allowed)?;
        within("kafka.lag_alarm_records", self.lag_alarm_records, 1.., "at least 1")?;
        for (key, topic) in self.written() {
            filled(key, topic, "a topic's name, or unset")?;
            if self.topics.iter().any(|read| read == topic) {
                let allowed = "none of kafka.topics, or what is written would be read";
                return Err(Invalid::new(key, topic, allowed));
            }
        }
        if let Some(topic) = &self.events_topic
            && self.dead_letter_topic.as_ref() == Some(topic)
        {
            let allowed = "another than kafka.dead_letter_topic";
            return Err(Invalid::new("kafka.events_topic", topic, allowed));
        }
        for (property, why) in OURS_ALONE {
            if let Some(value) = self.properties.get(property) {
                let key = format!("kafka.properties.{property}");
                return Err(Invalid::new(&key, value, format!("unset: {why}")));
            }
        }
        // librdkafka checks each property when a client is made: a name or value that it does not
        // know is refused there, by name.
        Ok(())
    }

    /// The topics that are written and never read, by key.
    fn written(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let letters = self.dead_letter_topic.as_deref().map(|t| ("kafka.dead_letter_topic", t));
        let events = self.events_topic.as_deref().map(|topic| ("kafka.events_topic", topic));
        letters.into_iter().chain(events)
    }

    /// The most bytes that are held of what has been fetched and not handed on.
    pub fn most_bytes(&self) -> u64 {
        client::most_bytes(self)
    }

    /// What every client of the cluster starts from.
    pub fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &self.brokers).set("client.id", "selfstream");
        // Everything that reaches the context is filtered there.
        client.set_log_level(RDKafkaLogLevel::Info);
        client
    }

    /// Lets the user's properties win.
    pub fn with_properties(&self, mut client: ClientConfig) -> ClientConfig {
        for (property, value) in &self.properties {
            client.set(property, value);
        }
        client
    }
}

/// Records that the broker has and we have not read, over all partitions.
#[derive(Clone, Debug, Default)]
pub struct Lag(Arc<AtomicU64>);

impl Lag {
    /// The last reading.
    pub fn records(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, records: u64) {
        self.0.store(records, Ordering::Relaxed);
    }
}

/// The Kafka source.
pub struct Kafka {
    config: Config,
    lag: Lag,
    max_value_bytes: usize,
}

impl Kafka {
    /// A source that reports its lag to `lag`, and hands records on without values longer than
    /// `max_value_bytes`.
    pub fn new(config: Config, lag: Lag, max_value_bytes: usize) -> Self {
        Self { config, lag, max_value_bytes }
    }
}

impl Source for Kafka {
    fn run(self: Box<Self>, link: Link) -> anyhow::Result<()> {
        consumer::run(&self.config, self.max_value_bytes, &self.lag, link)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_that_the_delivery_promise_rests_on_are_refused() {
        for (property, _) in OURS_ALONE {
            let properties = [(property.to_owned(), "x".to_owned())].into();
            let error = Config { properties, ..Config::default() }.validate().unwrap_err();
            assert_eq!(error.key, format!("kafka.properties.{property}"));
        }
    }

    #[test]
    fn events_have_a_topic_of_their_own() {
        let with = |events: &str| {
            let dead_letter_topic = Some("refused".to_owned());
            let events_topic = Some(events.to_owned());
            Config { dead_letter_topic, events_topic, ..Config::default() }.validate()
        };
        with("events").unwrap();
        for other in ["images", "refused", " "] {
            assert_eq!(with(other).unwrap_err().key, "kafka.events_topic", "{other}");
        }
    }

    #[test]
    fn the_users_properties_win() {
        let properties = [("client.id".to_owned(), "mine".to_owned())].into();
        let config = Config { properties, ..Config::default() };
        let client = config.with_properties(config.client());
        assert_eq!(client.get("client.id"), Some("mine"));
    }
}
