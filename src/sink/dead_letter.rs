//! Refused records, sent to a topic of their own with their bytes untouched, but for those that are too large.
//!
//! Delivery is at least once: a record counts as done only when the broker has acknowledged its
//! dead letter, and its headers name its origin, by which a reader drops doubles.

use crate::decode::Refusal;
use crate::source::kafka::Config;
use crate::source::{Origin, Record};
use anyhow::{Context as _, Result};
use metrics::counter;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use tokio::sync::mpsc;
use tracing::{debug, error, warn};

/// Header that names the origin, `topic/partition@offset`.
pub const ORIGIN_HEADER: &str = "selfstream-origin";
/// Header with the bounded reason, the metric's label.
pub const REASON_HEADER: &str = "selfstream-reason";
/// Header with the whole message.
pub const MESSAGE_HEADER: &str = "selfstream-message";
/// Header that says that the value was too large for the topic, or to be held, and was left out; it holds its
/// length.
pub const OMITTED_HEADER: &str = "selfstream-value-omitted-bytes";

/// The most bytes of dead letters under way, in all and of one, which may overshoot the first.
const QUEUE_KBYTES: u64 = 65_536;
const LETTER_BYTES: u64 = 32 << 20;
/// The most bytes of dead letters that a producer holds.
pub const MOST_BYTES: u64 = QUEUE_KBYTES * 1024 + LETTER_BYTES;

/// Acknowledgements that may wait for the learner.
const ACKNOWLEDGEMENTS: usize = 1024;

/// A record whose dead letter the broker has.
#[derive(Clone, Debug, PartialEq)]
pub struct Acknowledged {
    /// The record.
    pub origin: Origin,
    /// The assignment that delivered it.
    pub generation: u64,
}

/// The dead-letter topic.
pub struct DeadLetters {
    producer: ThreadedProducer<Context>,
    topic: String,
}

impl DeadLetters {
    /// A producer for `topic`, and the acknowledgements of what it sends.
    ///
    /// # Errors
    /// Properties that librdkafka refuses.
    pub fn open(config: &Config, topic: &str) -> Result<(Self, mpsc::Receiver<Acknowledged>)> {
        let (acknowledged, receiver) = mpsc::channel(ACKNOWLEDGEMENTS);
        let mut client = config.client();
        client
            .set("enable.idempotence", "true")
            // A dead letter is tried until it is through: giving up would lose the record.
            .set("message.timeout.ms", "0")
            .set("message.max.bytes", LETTER_BYTES.to_string())
            // Bounds memory while the broker is away.
            .set("queue.buffering.max.kbytes", QUEUE_KBYTES.to_string())
            .set("compression.type", "none");
        let producer = config
            .with_properties(client)
            .create_with_context(Context { acknowledged })
            .context("kafka client for dead letters")?;
        Ok((Self { producer, topic: topic.to_owned() }, receiver))
    }

    /// Sends a refused record. False if the producer's queue is full: try again later.
    ///
    /// # Errors
    /// What is not a matter of time.
    pub fn send(&self, record: &Record, refusal: &Refusal) -> Result<bool> {
        let value = (record.omitted_bytes == 0).then_some(&record.bytes[..]);
        self.produce(record, refusal, value)
    }

    fn produce(&self, record: &Record, refusal: &Refusal, value: Option<&[u8]>) -> Result<bool> {
        let acknowledged =
            Acknowledged { origin: record.origin.clone(), generation: record.generation };
        let mut headers = OwnedHeaders::new();
        for (key, value) in &record.headers {
            headers = headers.insert(Header { key, value: value.as_deref() });
        }
        let (origin, message) = (record.origin.to_string(), refusal.to_string());
        let ours = [
            (ORIGIN_HEADER, &*origin),
            (REASON_HEADER, refusal.reason()),
            (MESSAGE_HEADER, &message),
        ];
        for (key, value) in ours {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        let len = record.bytes.len().max(record.omitted_bytes).to_string();
        if value.is_none() {
            headers = headers.insert(Header { key: OMITTED_HEADER, value: Some(&len) });
        }
        let mut letter: BaseRecord<'_, [u8], [u8], Box<Acknowledged>> =
            BaseRecord::with_opaque_to(&self.topic, Box::new(acknowledged)).headers(headers);
        if let Some(value) = value {
            letter = letter.payload(value);
        }
        if let Some(key) = &record.key {
            letter = letter.key(key);
        }
        match self.producer.send(letter) {
            Ok(()) => Ok(true),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => Ok(false),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge), _))
                if value.is_some() =>
            {
                warn!(origin, "too large for the dead-letter topic: sent without its value");
                self.produce(record, refusal, None)
            }
            Err((error, _)) => Err(error).with_context(|| format!("dead letter of {origin}")),
        }
    }

    /// Whether any is under way to the broker, or its acknowledgement to us.
    pub fn are_under_way(&self) -> bool {
        self.producer.in_flight_count() > 0
    }
}

struct Context {
    acknowledged: mpsc::Sender<Acknowledged>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        debug!(target: "librdkafka", ?level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!(%error, reason, "dead-letter producer");
        counter!("selfstream_kafka_errors_total").increment(1);
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = Box<Acknowledged>;

    fn delivery(&self, result: &DeliveryResult<'_>, letter: Self::DeliveryOpaque) {
        match result {
            // The learner drains these; once it has ended, nobody needs them.
            Ok(_) => drop(self.acknowledged.blocking_send(*letter)),
            Err((error, message)) => {
                // Not done: its offset is never passed, and a restart refuses it again.
                error!(origin = %letter.origin, topic = message.topic(), %error, "dead letter lost");
                counter!("selfstream_dead_letter_failures_total").increment(1);
            }
        }
    }
}
