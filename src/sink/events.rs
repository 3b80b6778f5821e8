//! Events to a topic: all that `/v1/events` streams, as JSON under its type as key.
//!
//! Learning never waits for it: an event goes into the producer's bounded queue or is lost, and what is lost is
//! counted. At the end what is under way is waited for, for a bounded time, and then counted as lost.

use crate::events::{Events, Told};
use crate::source::kafka::Config;
use anyhow::{Context as _, Result};
use metrics::counter;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::producer::{
    BaseRecord, DeliveryResult, Producer, ProducerContext, PurgeConfig, ThreadedProducer,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

/// Events that wait for the broker: hours of a run, and less than a megabyte. A guess.
const QUEUE_MESSAGES: &str = "1000";
/// How long librdkafka may take to report what it was told to give up.
const GIVING_UP: Duration = Duration::from_secs(1);

/// The topic of events.
pub struct EventTopic {
    forwarding: JoinHandle<Forwarder>,
    end: CancellationToken,
}

impl EventTopic {
    /// Sends what is told from now on to `topic`, on `runtime`.
    ///
    /// # Errors
    /// Properties that librdkafka refuses.
    pub fn open(config: &Config, topic: &str, events: &Events, runtime: &Handle) -> Result<Self> {
        let mut client = config.client();
        client
            .set("enable.idempotence", "true")
            .set("queue.buffering.max.messages", QUEUE_MESSAGES);
        let lost = Lost::default();
        let producer = config
            .with_properties(client)
            .create_with_context(Context { lost: lost.clone() })
            .context("kafka client for events")?;
        let forwarder = Forwarder { producer, topic: topic.to_owned(), lost };
        let end = CancellationToken::new();
        let forwarding = runtime.spawn(forwarder.run(events.listen(), end.clone()));
        Ok(Self { forwarding, end })
    }

    /// Sends what has been told, and waits until the broker has it, about `timeout` at most. Returns how many
    /// events were lost since the beginning.
    pub async fn finish(self, timeout: Duration) -> u64 {
        self.end.cancel();
        let finished = async {
            let forwarder = self.forwarding.await?;
            // Flushing blocks.
            tokio::task::spawn_blocking(move || forwarder.flush(timeout)).await
        };
        finished.await.unwrap_or_else(|error| {
            error!(%error, "sending events has failed");
            0
        })
    }
}

/// Sends events.
struct Forwarder {
    producer: ThreadedProducer<Context>,
    topic: String,
    lost: Lost,
}

impl Forwarder {
    /// Sends what is heard until `end`, and then what has been told by then.
    async fn run(self, mut heard: Receiver<Told>, end: CancellationToken) -> Self {
        loop {
            let told = tokio::select! {
                told = heard.recv() => told,
                () = end.cancelled() => break,
            };
            match told {
                Ok(told) => self.send(&told),
                Err(RecvError::Lagged(n)) => self.lost.add(n, "more were told than were taken"),
                Err(RecvError::Closed) => return self,
            }
        }
        loop {
            match heard.try_recv() {
                Ok(told) => self.send(&told),
                Err(TryRecvError::Lagged(n)) => self.lost.add(n, "more were told than were taken"),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return self,
            }
        }
    }

    fn send(&self, told: &Told) {
        let (kind, json) = told.to_json();
        let record: BaseRecord<'_, str, str> =
            BaseRecord::to(&self.topic).key(&*kind).payload(&*json).timestamp(told.time_ms);
        if let Err((error, _)) = self.producer.send(record) {
            self.lost.add(1, error);
        }
    }

    /// Waits until all is acknowledged, then gives up what is not. Returns how many were lost.
    fn flush(self, timeout: Duration) -> u64 {
        if let Err(error) = self.producer.flush(timeout) {
            warn!(%error, "events are still unacknowledged: given up");
            // Each is then reported as not delivered; the broker may have it nevertheless.
            self.producer.purge(PurgeConfig::default().queue().inflight());
            if let Err(error) = self.producer.flush(GIVING_UP) {
                warn!(%error, "some of them are not counted");
            }
        }
        self.lost.total()
    }
}

/// Events that did not reach the topic.
#[derive(Clone, Debug, Default)]
struct Lost(Arc<AtomicU64>);

impl Lost {
    fn add(&self, n: u64, why: impl std::fmt::Display) {
        warn!(n, %why, "events were not delivered to their topic");
        self.0.fetch_add(n, Ordering::Relaxed);
        counter!("selfstream_event_failures_total").increment(n);
    }

    fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

struct Context {
    lost: Lost,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        debug!(target: "librdkafka", ?level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!(%error, reason, "event producer");
        counter!("selfstream_kafka_errors_total").increment(1);
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(message) => debug!(offset = message.offset(), "event delivered"),
            Err((error, _)) => self.lost.add(1, error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Event;

    /// A port where nobody listens.
    fn nowhere() -> Config {
        Config { brokers: "127.0.0.1:1".to_owned(), ..Config::default() }
    }

    #[tokio::test]
    async fn without_a_broker_every_event_is_counted_as_lost_and_the_end_comes() {
        let events = Events::default();
        let topic = EventTopic::open(&nowhere(), "events", &events, &Handle::current()).unwrap();
        for step in 0..3 {
            events.tell(Event::Refused { step, reason: "collapsed" });
        }
        assert_eq!(topic.finish(Duration::from_millis(50)).await, 3);
        assert_eq!(events.listeners(), 0);
    }

    #[tokio::test]
    async fn what_does_not_fit_the_queue_is_lost_at_once() {
        let events = Events::default();
        let properties = [("queue.buffering.max.messages".to_owned(), "1".to_owned())].into();
        let config = Config { properties, ..nowhere() };
        let topic = EventTopic::open(&config, "events", &events, &Handle::current()).unwrap();
        for step in 0..5 {
            events.tell(Event::Refused { step, reason: "collapsed" });
        }
        assert_eq!(topic.finish(Duration::from_millis(50)).await, 5);
    }

    #[test]
    fn a_property_that_there_is_not_is_refused() {
        let properties = [("no.such.property".to_owned(), "1".to_owned())].into();
        let config = Config { properties, ..nowhere() };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let opened = EventTopic::open(&config, "events", &Events::default(), runtime.handle());
        let error = format!("{:#}", opened.err().unwrap());
        assert!(error.contains("no.such.property"), "{error}");
    }
}
