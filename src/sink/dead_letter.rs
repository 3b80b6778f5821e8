//! Refused records, sent to a topic of their own with their bytes untouched, but for those that are too large.
//!
//! Delivery is at least once: a record counts as done only when the broker has acknowledged its
//! dead letter, and its headers name its origin, by which a reader drops doubles. A letter that the broker finds too
//! large goes once more, without its value; one that it will never take ends the run, for its record could never be
//! done, nor what lies behind it be committed.

use crate::decode::Refusal;
use crate::source::kafka::Config;
use crate::source::{Origin, Record};
use anyhow::{Context as _, Result};
use metrics::counter;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
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
/// Longest wait for news of letters under way before those that came back are sent again.
const POLL: Duration = Duration::from_millis(100);

/// A record whose dead letter the broker has.
#[derive(Clone, Debug, PartialEq)]
pub struct Acknowledged {
    /// The record.
    pub origin: Origin,
    /// The assignment that delivered it.
    pub generation: u64,
}

/// A dead letter that the broker will never take.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the broker will never take the dead letter of {origin} to {topic}")]
pub struct Lost {
    /// The record.
    pub origin: Origin,
    /// The dead-letter topic.
    pub topic: String,
    /// What the broker says.
    #[source]
    pub error: KafkaError,
}

/// The dead-letter topic.
pub struct DeadLetters {
    producer: Arc<BaseProducer<Context>>,
    topic: String,
    has_ended: Arc<AtomicBool>,
    /// Hears of what is under way; gone once it is to end.
    thread: Option<JoinHandle<()>>,
}

impl DeadLetters {
    /// A producer for `topic`, and the acknowledgements of what it sends.
    ///
    /// # Errors
    /// Properties that librdkafka refuses; a thread that cannot be started.
    pub fn open(config: &Config, topic: &str) -> Result<(Self, mpsc::Receiver<Acknowledged>)> {
        let (acknowledged, receiver) = mpsc::channel(ACKNOWLEDGEMENTS);
        let mut client = config.client();
        client
            .set("enable.idempotence", "true")
            // A dead letter is tried until it is through: giving up would lose the record.
            .set("message.timeout.ms", "0")
            .set("message.max.bytes", LETTER_BYTES.to_string())
            // What the broker finds too large is a batch: a letter that is not is not to suffer for others.
            .set("batch.num.messages", "1")
            // Bounds memory while the broker is away.
            .set("queue.buffering.max.kbytes", QUEUE_KBYTES.to_string())
            .set("compression.type", "none");
        let context = Context { acknowledged, returned: Mutex::default(), lost: Mutex::default() };
        let producer: BaseProducer<Context> = config
            .with_properties(client)
            .create_with_context(context)
            .context("kafka client for dead letters")?;
        let (producer, has_ended) = (Arc::new(producer), Arc::new(AtomicBool::new(false)));
        let poll = {
            let (producer, has_ended) = (Arc::clone(&producer), Arc::clone(&has_ended));
            let topic = topic.to_owned();
            move || {
                while !has_ended.load(Ordering::Relaxed) {
                    producer.poll(POLL);
                    send_returned(&producer, &topic);
                }
            }
        };
        let thread = std::thread::Builder::new().name("dead-letters".to_owned()).spawn(poll);
        let thread = Some(thread.context("starting the dead-letter thread")?);
        Ok((Self { producer, topic: topic.to_owned(), has_ended, thread }, receiver))
    }

    /// Sends a refused record. False if the producer's queue is full: try again later.
    ///
    /// # Errors
    /// What is not a matter of time; see [`Self::check`].
    pub fn send(&self, record: &Record, refusal: &Refusal) -> Result<bool> {
        self.check()?;
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
        if value.is_none() {
            headers = omitting(headers, record.bytes.len().max(record.omitted_bytes));
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

    /// Whether all are acknowledged, or may still be.
    ///
    /// # Errors
    /// [`Lost`].
    pub fn check(&self) -> Result<()> {
        match &*lock(&self.producer.context().lost) {
            Some(lost) => Err(lost.clone().into()),
            None => Ok(()),
        }
    }

    /// Whether any is under way to the broker, or its acknowledgement to us.
    pub fn are_under_way(&self) -> bool {
        // Locked meanwhile, so that none is on its way from the one to the other.
        let returned = lock(&self.producer.context().returned);
        !returned.is_empty() || self.producer.in_flight_count() > 0
    }
}

impl Drop for DeadLetters {
    fn drop(&mut self) {
        self.has_ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the dead-letter thread panicked");
        }
    }
}

/// A letter that the broker found too large, as it goes once more.
struct Returned {
    acknowledged: Acknowledged,
    key: Option<Vec<u8>>,
    headers: OwnedHeaders,
}

impl Returned {
    fn without_value(acknowledged: Acknowledged, message: &BorrowedMessage<'_>) -> Self {
        let headers = message.headers().map(BorrowedHeaders::detach).unwrap_or_default();
        let headers = omitting(headers, message.payload_len());
        Self { acknowledged, key: message.key().map(<[u8]>::to_vec), headers }
    }
}

/// Says that a value of `len` bytes was left out.
fn omitting(headers: OwnedHeaders, len: usize) -> OwnedHeaders {
    headers.insert(Header { key: OMITTED_HEADER, value: Some(&len.to_string()) })
}

/// Sends the letters that came back, as far as there is room for them.
fn send_returned(producer: &BaseProducer<Context>, topic: &str) {
    let context = producer.context();
    let mut returned = lock(&context.returned);
    while let Some(letter) = returned.pop() {
        let acknowledged = Box::new(letter.acknowledged.clone());
        let mut again: BaseRecord<'_, [u8], [u8], Box<Acknowledged>> =
            BaseRecord::with_opaque_to(topic, acknowledged).headers(letter.headers.clone());
        if let Some(key) = &letter.key {
            again = again.key(key);
        }
        match producer.send(again).map_err(|(error, _)| error) {
            Ok(()) => {}
            Err(KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)) => {
                returned.push(letter);
                return;
            }
            Err(error) => context.lose(letter.acknowledged.origin, topic, error),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Context {
    acknowledged: mpsc::Sender<Acknowledged>,
    /// Letters that are to go once more.
    returned: Mutex<Vec<Returned>>,
    /// The first that will never arrive.
    lost: Mutex<Option<Lost>>,
}

impl Context {
    /// Notes a letter that did not arrive and will not be sent again: its record is not done, its offset is never
    /// passed, and a restart refuses it again.
    fn lose(&self, origin: Origin, topic: &str, error: KafkaError) {
        error!(%origin, topic, %error, "dead letter lost");
        counter!("selfstream_dead_letter_failures_total").increment(1);
        lock(&self.lost).get_or_insert(Lost { origin, topic: topic.to_owned(), error });
    }
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
            Err((error, message)) if is_too_large(error) && message.payload_len() > 0 => {
                let (origin, bytes) = (&letter.origin, message.payload_len());
                warn!(%origin, bytes, %error, "sent to the dead-letter topic without its value");
                lock(&self.returned).push(Returned::without_value(*letter, message));
            }
            Err((error, message)) => self.lose(letter.origin, message.topic(), error.clone()),
        }
    }
}

/// Whether the broker's limits are what is in the way; ours are not those of its topics.
fn is_too_large(error: &KafkaError) -> bool {
    let too_large = [RDKafkaErrorCode::MessageSizeTooLarge, RDKafkaErrorCode::MessageBatchTooLarge];
    error.rdkafka_error_code().is_some_and(|code| too_large.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::kafka::headers;
    use bytes::Bytes;
    use rdkafka::ClientConfig;
    use rdkafka::consumer::{BaseConsumer, Consumer};
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::DefaultProducerContext;
    use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
    use std::time::Instant;

    const TOPIC: &str = "refused";
    /// Longer than anything takes here.
    const PATIENCE: Duration = Duration::from_secs(20);

    type Cluster = MockCluster<'static, DefaultProducerContext>;

    fn origin() -> Origin {
        Origin { topic: "images".into(), partition: 3, offset: 17 }
    }

    fn record() -> Record {
        Record {
            bytes: "value".into(),
            key: Some("key".into()),
            headers: vec![("label".to_owned(), Some("cat".into()))],
            ..Record::skipped(origin(), 5)
        }
    }

    /// A broker that answers what it is sent with these errors first, and a letter that is under way to it. What is
    /// given last is to be dropped first.
    fn send(errors: &[RDKafkaRespErr]) -> (Cluster, DeadLetters, mpsc::Receiver<Acknowledged>) {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic(TOPIC, 1, 1).unwrap();
        cluster.request_errors(RDKafkaApiKey::Produce, errors);
        let config = Config { brokers: cluster.bootstrap_servers(), ..Config::default() };
        let (letters, acknowledged) = DeadLetters::open(&config, TOPIC).unwrap();
        assert!(letters.send(&record(), &Refusal::Empty).unwrap());
        (cluster, letters, acknowledged)
    }

    /// What the broker has.
    type Letter = (Option<Vec<u8>>, Option<Vec<u8>>, Vec<(String, Option<Bytes>)>);

    fn arrived(cluster: &Cluster) -> Letter {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", cluster.bootstrap_servers())
            .set("group.id", "tests")
            .create()
            .unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(TOPIC, 0, Offset::Beginning).unwrap();
        consumer.assign(&list).unwrap();
        let message = (0..5).find_map(|_| consumer.poll(PATIENCE)?.ok()).unwrap();
        let headers = headers::copied(message.headers().unwrap());
        let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
        (owned(message.key()), owned(message.payload()), headers)
    }

    /// A topic may take less than the client does.
    #[test]
    fn a_letter_that_the_broker_finds_too_large_goes_once_more_without_its_value() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        for (errors, has_value) in [
            (vec![], true),
            (vec![RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE], false),
            (vec![RDKafkaRespErr::RD_KAFKA_RESP_ERR_RECORD_LIST_TOO_LARGE], false),
        ] {
            let (cluster, letters, mut acknowledged) = send(&errors);
            let heard = async { tokio::time::timeout(PATIENCE, acknowledged.recv()).await };
            let heard = runtime.block_on(heard).unwrap();
            assert_eq!(heard, Some(Acknowledged { origin: origin(), generation: 5 }));
            letters.check().unwrap();
            let (key, value, headers) = arrived(&cluster);
            assert_eq!(key.as_deref(), Some(&b"key"[..]));
            assert_eq!(value.as_deref(), has_value.then_some(&b"value"[..]));
            let (origin, message) = (origin().to_string(), Refusal::Empty.to_string());
            let mut expected = vec![
                ("label", "cat"),
                (ORIGIN_HEADER, &origin),
                (REASON_HEADER, Refusal::Empty.reason()),
                (MESSAGE_HEADER, &message),
            ];
            expected.extend((!has_value).then_some((OMITTED_HEADER, "5")));
            let expected = expected.into_iter().map(|(name, value)| {
                (name.to_owned(), Some(Bytes::copy_from_slice(value.as_bytes())))
            });
            assert_eq!(headers, expected.collect::<Vec<_>>());
        }
    }

    /// Its record could never be done, and what lies behind it never be committed.
    #[test]
    fn one_that_the_broker_will_never_take_ends_the_run_by_an_error_that_names_its_record() {
        let too_large = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
        for errors in [
            vec![too_large, too_large],
            vec![RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED],
        ] {
            let (_cluster, letters, mut acknowledged) = send(&errors);
            let began = Instant::now();
            while letters.are_under_way() && began.elapsed() < PATIENCE {
                std::thread::yield_now();
            }
            acknowledged.try_recv().unwrap_err();
            let told = [letters.check(), letters.send(&record(), &Refusal::Empty).map(drop)];
            for error in told.map(|told| format!("{:#}", told.unwrap_err())) {
                assert!(error.contains("images/3@17") && error.contains(TOPIC), "{error}");
            }
        }
    }
}
