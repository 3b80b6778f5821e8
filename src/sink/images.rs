//! Images to a topic: what `produce` and the demo send.

use crate::setting::Invalid;
use crate::source::collection::Collection;
use anyhow::{Context as _, Result, bail};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tracing::{debug, warn};

/// Header with an image's label; read for evaluation alone, never for training.
pub const LABEL_HEADER: &str = "label";

/// Counts of what became of messages.
#[derive(Debug, Default)]
struct Deliveries {
    acknowledged: AtomicU64,
    failed: AtomicU64,
}

/// Sends the images of a collection to one topic.
pub struct ImageProducer {
    producer: ThreadedProducer<Context>,
    topic: String,
    has_labels: bool,
    deliveries: Arc<Deliveries>,
    sent: u64,
}

impl ImageProducer {
    /// A producer for `topic`; `has_labels` adds each image's label as a header.
    ///
    /// # Errors
    /// Properties that librdkafka refuses.
    pub fn open(
        brokers: &str,
        topic: &str,
        properties: &[(String, String)],
        has_labels: bool,
    ) -> Result<Self> {
        let mut client = ClientConfig::new();
        client
            .set("bootstrap.servers", brokers)
            .set("client.id", "selfstream-produce")
            .set("linger.ms", "5")
            .set("message.max.bytes", "33554432");
        for (name, value) in properties {
            client.set(name, value);
        }
        let deliveries = Arc::new(Deliveries::default());
        let context = Context { deliveries: Arc::clone(&deliveries) };
        let producer = client.create_with_context(context).context("kafka client")?;
        Ok(Self { producer, topic: topic.to_owned(), has_labels, deliveries, sent: 0 })
    }

    /// Sends image `index` of `images`. False if the local queue is full: try again later.
    ///
    /// # Errors
    /// A file that cannot be read, or a message that can never be sent.
    pub fn send(&mut self, images: &Collection, index: usize) -> Result<bool> {
        let bytes = images.read(index)?;
        let mut letter: BaseRecord<'_, str, [u8]> =
            BaseRecord::to(&self.topic).key(images.name(index)).payload(&bytes);
        if let Some(label) = images.label(index).filter(|_| self.has_labels) {
            let header = Header { key: LABEL_HEADER, value: Some(label) };
            letter = letter.headers(OwnedHeaders::new().insert(header));
        }
        match self.producer.send(letter) {
            Ok(()) => {
                self.sent += 1;
                Ok(true)
            }
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => Ok(false),
            Err((error, _)) => {
                Err(error).with_context(|| format!("sending {}", images.name(index)))
            }
        }
    }

    /// Messages given to the local queue.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Messages that the broker has.
    pub fn acknowledged(&self) -> u64 {
        self.deliveries.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until every message is acknowledged.
    ///
    /// # Errors
    /// Messages that failed, or a broker that did not answer in time.
    pub fn finish(self, timeout: Duration) -> Result<u64> {
        self.producer.flush(timeout).context("waiting for acknowledgements")?;
        match self.deliveries.failed.load(Ordering::Relaxed) {
            0 => Ok(self.acknowledged()),
            failed => bail!("{failed} of {} messages were not delivered", self.sent),
        }
    }
}

/// Reads a `name=value` property of the command line.
///
/// # Errors
/// A text without `=`.
pub fn parse_property(text: &str) -> Result<(String, String), Invalid> {
    match text.split_once('=') {
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err(Invalid::new("--property", text, "name=value")),
    }
}

struct Context {
    deliveries: Arc<Deliveries>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        debug!(target: "librdkafka", ?level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        warn!(%error, reason, "kafka");
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(_) => self.deliveries.acknowledged.fetch_add(1, Ordering::Relaxed),
            Err((error, _)) => {
                warn!(%error, "not delivered");
                self.deliveries.failed.fetch_add(1, Ordering::Relaxed)
            }
        };
    }
}
