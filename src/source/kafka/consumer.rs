//! The poll loop. It never stops polling for long, so a step of any length loses no assignment.

use super::client::{Fatal, client_config, is_held_by_another};
use super::commit::{UnderWay, commit_later};
use super::context::{Context, RateLimit, wait_or_stop};
use super::holding::Holding;
use super::leave::leave;
use super::pace::Pace;
use super::{Config, Lag, headers};
use crate::source::offsets::Partition;
use crate::source::{Commit, Downstream, Link, Offer, Origin, Record, Told};
use anyhow::{Context as _, Result};
use bytes::Bytes;
use rdkafka::consumer::{BaseConsumer, Consumer, RebalanceProtocol};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::TopicPartitionList;
use std::cell::Cell;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tracing::{info, warn};

/// Longest wait for a message; commits and the stop signal are looked at as often.
const POLL: Duration = Duration::from_millis(100);
/// Longest wait for space downstream before the partitions are paused and polled on. Pausing drops
/// what librdkafka has fetched ahead, so it is kept for steps that take longer than most.
const BLOCK: Duration = Duration::from_secs(5);
/// Time between two attempts to join as a static member that another session still holds.
const HELD: Duration = Duration::from_secs(1);

/// Reads until `link.stop`, then commits until the learner has ended.
pub(super) fn run(
    config: &Config,
    max_value_bytes: usize,
    lag: &Lag,
    mut link: Link,
) -> Result<()> {
    loop {
        match read(config, max_value_bytes, lag, &mut link) {
            Err(error) if is_held_by_another(&error) && !link.stop.is_cancelled() => {
                warn!("an earlier session still holds kafka.instance_id: waiting for it to end");
                wait_or_stop(&link.runtime, &link.stop, HELD);
            }
            ended => return ended,
        }
    }
}

fn read(config: &Config, max_value_bytes: usize, lag: &Lag, link: &mut Link) -> Result<()> {
    let Link { records, learner, told, stop, runtime } = link;
    let context = Context {
        learner: learner.clone(),
        stop: stop.clone(),
        runtime: runtime.clone(),
        start_at: config.start,
        lag: lag.clone(),
        lag_alarm_records: config.lag_alarm_records,
        holding: Holding::default(),
        under_way: UnderWay::default(),
        quiet: RateLimit::default(),
    };
    let consumer: BaseConsumer<Context> =
        client_config(config).create_with_context(context).context("kafka client")?;
    let topics: Vec<&str> = config.topics.iter().map(String::as_str).collect();
    consumer.subscribe(&topics).context("subscribing")?;
    info!(?topics, group = config.group, brokers = config.brokers, "subscribed");

    let mut reader = Reader {
        consumer: &consumer,
        names: HashSet::new(),
        pace: Pace::new(config.lag_target_records),
        not_read: config.written().map(|(_, topic)| topic).collect(),
        max_value_bytes,
        has_lost_place: Cell::new(false),
    };
    while !stop.is_cancelled() {
        reader.hear(told)?;
        reader.pace.observe(lag.records(), Instant::now());
        match consumer.poll(POLL) {
            None => {}
            Some(Err(error)) => reader.on_error(&error)?,
            Some(Ok(message)) => {
                if let Some(record) = reader.record(&message)
                    && !reader.hand_on(record, &mut **records, told, stop)?
                {
                    // The learner has ended, or a decoder has died: then the learner would wait for ever.
                    stop.cancel();
                }
            }
        }
    }
    let last = reader.await_learner(told)?;
    leave(consumer, last, runtime)
}

struct Reader<'a> {
    consumer: &'a BaseConsumer<Context>,
    names: HashSet<Arc<str>>,
    pace: Pace,
    /// The topics that we write, which a regular expression of topics may match.
    not_read: Vec<&'a str>,
    /// Longer values are not copied.
    max_value_bytes: usize,
    /// Whether a place was gone at the broker, and partitions are still to begin again for it.
    has_lost_place: Cell<bool>,
}

impl Reader<'_> {
    /// Sends the newest checkpoint's offsets, if one has been written; goes back where the learner has, or begins what
    /// could not be begun before.
    fn hear(&self, told: &mut mpsc::Receiver<Told>) -> Result<()> {
        let (mut newest, mut went_back) = (None, false);
        while let Ok(told) = told.try_recv() {
            match told {
                Told::Written(commit) => newest = Some(commit),
                // What was committed before is not done any more.
                Told::WentBack => (newest, went_back) = (None, true),
            }
        }
        self.realign_in_time()?;
        if went_back {
            self.begin_again(&self.consumer.assignment().context("assignment")?)?;
        } else if self.consumer.context().holding.is_time_to_begin() {
            self.begin_owed()?;
        }
        if let Some(commit) = newest {
            commit_later(self.consumer, commit);
        }
        Ok(())
    }

    /// Copies a message out of librdkafka, or its place alone if the pace skips it; `None` if its
    /// partition has just been revoked.
    fn record(&mut self, message: &BorrowedMessage<'_>) -> Option<Record> {
        if self.not_read.contains(&message.topic()) {
            return None;
        }
        let topic = self.intern(message.topic());
        let partition = Partition { topic: Arc::clone(&topic), partition: message.partition() };
        let generation = self.consumer.context().holding.generation(&partition)?;
        let origin = Origin { topic, partition: message.partition(), offset: message.offset() };
        if !self.pace.takes() {
            return Some(Record::skipped(origin, generation));
        }
        let value = message.payload().unwrap_or_default();
        let is_held = value.len() <= self.max_value_bytes;
        Some(Record {
            origin,
            generation,
            is_skipped: false,
            bytes: if is_held { Bytes::copy_from_slice(value) } else { Bytes::new() },
            omitted_bytes: if is_held { 0 } else { value.len() },
            timestamp_ms: message.timestamp().to_millis(),
            key: message.key().map(Bytes::copy_from_slice),
            headers: message.headers().map(headers::copied).unwrap_or_default(),
        })
    }

    fn intern(&mut self, topic: &str) -> Arc<str> {
        if let Some(name) = self.names.get(topic) {
            return Arc::clone(name);
        }
        let name: Arc<str> = Arc::from(topic);
        self.names.insert(Arc::clone(&name));
        name
    }

    /// Hands a record on, polling all the while. False if the next stage has ended.
    fn hand_on(
        &self,
        record: Record,
        records: &mut dyn Downstream,
        told: &mut mpsc::Receiver<Told>,
        stop: &tokio_util::sync::CancellationToken,
    ) -> Result<bool> {
        let mut record = match records.offer(record, BLOCK) {
            Offer::Taken => return Ok(true),
            Offer::Closed => return Ok(false),
            Offer::Full(record) => record,
        };
        let paused = self.consumer.assignment().context("assignment")?;
        self.consumer.pause(&paused).context("pausing")?;
        let is_open = loop {
            self.hear(told)?;
            // Paused partitions deliver nothing: this serves rebalances and keeps the membership.
            match self.consumer.poll(Duration::ZERO) {
                Some(Err(error)) => self.on_error(&error)?,
                Some(Ok(message)) => {
                    // Assigned while we were paused: it will be read again from here.
                    self.rewind(&message)?;
                }
                None => {}
            }
            match records.offer(record, POLL) {
                Offer::Taken => break true,
                Offer::Closed => break false,
                Offer::Full(_) if stop.is_cancelled() => break false,
                Offer::Full(same) => record = same,
            }
        };
        let assigned = self.consumer.assignment().context("assignment")?;
        self.consumer.resume(&assigned).context("resuming")?;
        Ok(is_open)
    }

    fn rewind(&self, message: &BorrowedMessage<'_>) -> Result<()> {
        let offset = rdkafka::Offset::Offset(message.offset());
        let (topic, partition) = (message.topic(), message.partition());
        self.consumer
            .seek(topic, partition, offset, Duration::from_secs(10))
            .context("rewinding")?;
        let assigned = self.consumer.assignment().context("assignment")?;
        self.consumer.pause(&assigned).context("pausing")
    }

    /// Outages pass; only what librdkafka calls fatal ends the run.
    fn on_error(&self, error: &KafkaError) -> Result<()> {
        if let Some((code, reason)) = self.consumer.client().fatal_error() {
            return Err(Fatal { code, reason }.into());
        }
        let code = error.rdkafka_error_code();
        if code == Some(RDKafkaErrorCode::AutoOffsetReset) {
            self.has_lost_place.set(true);
            return self.realign_in_time();
        }
        let kind = code.map_or_else(|| error.to_string(), |code| format!("{code:?}"));
        if self.consumer.context().quiet.admits(&kind) {
            warn!(%error, "kafka: reading failed; it is tried again until it passes");
        }
        Ok(())
    }

    /// Where our place is gone at the broker, begins each partition again inside what it has. Seldom, as it drops what
    /// is in flight of all of them, and one that cannot be begun yet may say so again at once.
    fn realign_in_time(&self) -> Result<()> {
        if !self.has_lost_place.get() || !self.consumer.context().quiet.admits("realigning") {
            return Ok(());
        }
        self.has_lost_place.set(false);
        let assigned = self.consumer.assignment().context("assignment")?;
        self.consumer.context().release(self.consumer, &assigned);
        self.begin_again(&assigned)
    }

    /// Begins what could not be begun before, as far as it can be by now.
    fn begin_owed(&self) -> Result<()> {
        let assigned = self.consumer.assignment().context("assignment")?;
        let owed = self.consumer.context().owed(self.consumer, &assigned);
        match self.consumer.rebalance_protocol() {
            _ if owed.count() == 0 => Ok(()),
            RebalanceProtocol::Cooperative => self.begin_again(&owed),
            // An assignment is made as a whole there.
            _ => self.begin_again(&assigned),
        }
    }

    /// Reads each partition of `list` on from where the learner says.
    fn begin_again(&self, list: &TopicPartitionList) -> Result<()> {
        let is_placed = self.consumer.context().place(self.consumer, list);
        if !is_placed || list.count() == 0 {
            return Ok(());
        }
        // Not by seeking, which needs a partition that is being read: one whose place is gone is not.
        match self.consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => {
                self.consumer.incremental_unassign(list).context("letting go")?;
                self.consumer.incremental_assign(list).context("beginning again")
            }
            _ => self.consumer.assign(list).context("beginning again"),
        }
    }

    /// Keeps the membership until the learner has ended; returns what is to be committed last.
    fn await_learner(&self, told: &mut mpsc::Receiver<Told>) -> Result<Option<Commit>> {
        let assigned = self.consumer.assignment().context("assignment")?;
        self.consumer.pause(&assigned).context("pausing")?;
        let mut last: Option<Commit> = None;
        loop {
            match told.try_recv() {
                Ok(Told::Written(commit)) => last = Some(commit),
                Ok(Told::WentBack) => last = None,
                Err(mpsc::error::TryRecvError::Disconnected) => return Ok(last),
                Err(mpsc::error::TryRecvError::Empty) => {
                    if let Some(Err(error)) = self.consumer.poll(POLL) {
                        self.on_error(&error)?;
                    }
                }
            }
        }
    }
}
