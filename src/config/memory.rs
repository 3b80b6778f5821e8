//! What a run may need of memory at most, part by part, and whether that is below a ceiling.
//!
//! Every part is bounded by settings, and its row here is an upper bound that follows from them: what is
//! said to be a guess was chosen too large. Decoded images that wait are what gives: where there is a
//! ceiling, their queues are as long as what the other parts leave allows.

mod encoder;

use super::Config;
use crate::setting::Invalid;
use crate::{learner, sink, source};
use encoder::Needs;
use std::fmt;
use std::thread::available_parallelism;

/// The most records that a decoder may hold before its work, and again after it. A guess.
const MAX_DECODE_QUEUE: u64 = 256;
/// Code, the runtime, clients and logs; and the stack and the buffers of a thread. Guesses.
const PROGRAM_BYTES: u64 = 96 << 20;
const THREAD_BYTES: u64 = 4 << 20;
/// Threads of the edges and of the stages that have one alone, about.
const OTHER_THREADS: u64 = 24;
/// What the allocator holds beside what is in use, as a part of it. A guess.
const ALLOCATOR_PART: u64 = 8;
/// Of a request's body: its pieces, the whole of them, and what a form takes out of it.
const BODY_COPIES: u64 = 3;
/// Batches of images whose bytes are held: those that wait, the next one, the one in hand, and that which the
/// replay buffer is offered next.
const BATCHES: u64 = learner::FRESH_BATCHES as u64 + 3;
/// Rows of a refusal: those that there is most to gain from.
const ROWS_TOLD: usize = 5;

/// A part of the program with what it may need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// What it is.
    pub name: &'static str,
    /// At most.
    pub bytes: u64,
    /// The settings that make it smaller.
    pub settings: &'static str,
}

/// What a run may need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Its parts, the largest first.
    pub parts: Vec<Part>,
    /// Records in each of a decoder's two queues.
    pub decode_queue: usize,
}

impl MemoryPlan {
    /// The most that all parts need together.
    pub fn bytes(&self) -> u64 {
        sum(&self.parts)
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "memory, at most: {} MiB", mib(self.bytes()))?;
        for Part { name, bytes, settings } in &self.parts {
            writeln!(f, "{:>8} MiB  {name} ({settings})", mib(*bytes))?;
        }
        Ok(())
    }
}

/// Whole ones, rounded up.
fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

fn sum(parts: &[Part]) -> u64 {
    parts.iter().fold(0, |sum: u64, part| sum.saturating_add(part.bytes))
}

fn product<const N: usize>(factors: [u64; N]) -> u64 {
    factors.into_iter().fold(1, u64::saturating_mul)
}

impl Config {
    /// What a run may need, with queues as long as the ceiling allows.
    ///
    /// # Errors
    /// An encoder that cannot take its images.
    pub fn memory(&self) -> Result<MemoryPlan, Invalid> {
        let threads = self.run.decode_threads as u64;
        // A batch is decoded while the one before it is learned.
        let wanted = (self.batch.images as u64).div_ceil(threads).min(MAX_DECODE_QUEUE);
        let Some(ceiling) = self.run.max_memory_bytes else { return self.memory_with(wanted) };
        let least = self.memory_with(1)?.bytes();
        // One more for the allocator's part, which is rounded.
        let longer = self.memory_with(2)?.bytes() - least + 1;
        let spare = ceiling.saturating_sub(least) / longer;
        self.memory_with(spare.saturating_add(1).min(wanted))
    }

    /// Refuses an encoder that cannot take its images, and a ceiling that a run may need more than.
    pub(super) fn validate_memory(&self) -> Result<(), Invalid> {
        let plan = self.memory()?;
        let Some(ceiling) = self.run.max_memory_bytes else { return Ok(()) };
        let key = "run.max_memory_bytes";
        if self.run.deterministic {
            // Images of one partition that are ahead of another's wait outside of any queue.
            return Err(Invalid::new(key, ceiling, "unset with run.deterministic"));
        }
        let sum = plan.bytes();
        if sum <= ceiling {
            return Ok(());
        }
        let tell =
            |part: &Part| format!("{} {} MiB ({})", part.name, mib(part.bytes), part.settings);
        let largest: Vec<String> = plan.parts.iter().take(ROWS_TOLD).map(tell).collect();
        let allowed = format!(
            "at least {sum}, which the parts may need together; the largest, with what makes them \
             smaller: {}",
            largest.join(", ")
        );
        Err(Invalid::new(key, ceiling, allowed))
    }

    /// With decode queues of this length.
    fn memory_with(&self, decode_queue: u64) -> Result<MemoryPlan, Invalid> {
        let needs = Needs::of(self)?;
        let mut parts = self.stream_parts(decode_queue);
        parts.extend(self.edge_parts());
        parts.extend(needs.parts(self));
        let settings = "a part of all others";
        let bytes = sum(&parts) / ALLOCATOR_PART;
        parts.push(Part { name: "what the allocator keeps", bytes, settings });
        parts.retain(|part| part.bytes > 0);
        parts.sort_by_key(|part| std::cmp::Reverse(part.bytes));
        let decode_queue = usize::try_from(decode_queue).unwrap_or(usize::MAX);
        Ok(MemoryPlan { parts, decode_queue })
    }

    /// What is held of images on their way from the source to the replay buffer.
    fn stream_parts(&self, decode_queue: u64) -> Vec<Part> {
        let image = self.image.max_bytes as u64;
        let both = image.saturating_add(self.image.decoded_bytes());
        let batch = self.batch.images as u64;
        let decoders = self.run.decode_threads as u64;
        // In a decoder's hands and queues; one more in those of the source, and of what fetches claims.
        let waiting = decoders * (2 * decode_queue + 1) + 2;
        let claims = self.claims.most_records() as u64;
        let watched = (self.drift.most_images() + self.prequential.most_images()) as u64;
        // A restart, or going back, reads a buffer beside another; while a checkpoint is written it holds what
        // has left the buffer since. A quarter more for where each image is from and lies: that is above it
        // for images of 1 KB and more on average, a guess.
        let replay = 2 * product([self.replay.max_bytes as u64 / 4, 5]).min(u64::MAX / 2);
        let part = |name, bytes, settings| Part { name, bytes, settings };
        vec![
            part("what decoders work on", self.decoding(), "image.max_pixels, threads"),
            part(
                "images at the decoders",
                product([waiting, both]),
                "image.max_bytes, image.working_side_px, run.decode_threads",
            ),
            part("claim checks", product([claims, image]), "claims.concurrency, image.max_bytes"),
            part(
                "images of batches",
                product([batch, image, BATCHES]).saturating_add(product([
                    batch,
                    self.image.decoded_bytes(),
                    BATCHES - 1,
                ])),
                "image.max_bytes, image.working_side_px, batch.images",
            ),
            part(
                "images that are watched",
                product([watched, image]),
                "drift.enabled, prequential.references, image.max_bytes",
            ),
            part("replay, twice while a checkpoint is read or written", replay, "replay.max_bytes"),
        ]
    }

    /// Of every thread that decodes: arriving images, replayed ones for views and for the learner's checks,
    /// queries, and what is watched.
    fn decoding(&self) -> u64 {
        let watching = u64::from(self.drift.enabled) + u64::from(self.prequential.enabled);
        let run = &self.run;
        let threads = (run.decode_threads + run.view_threads + self.server.threads) as u64;
        let threads = threads + self.learner_threads() + watching;
        product([threads, self.image.decoding_bytes()])
    }

    fn learner_threads(&self) -> u64 {
        let all = || available_parallelism().map_or(1, usize::from);
        let threads = self.run.learner_threads;
        (if threads == 0 { all() } else { threads }) as u64
    }

    /// The program itself, its clients and its server.
    fn edge_parts(&self) -> Vec<Part> {
        let (run, server) = (&self.run, &self.server);
        let threads = (run.decode_threads + run.view_threads + 2 * server.threads) as u64;
        let threads = threads + self.learner_threads() + OTHER_THREADS;
        let is_kafka = self.source.kind == source::Kind::Kafka;
        let has_letters = is_kafka && self.kafka.dead_letter_topic.is_some();
        let views = product([3 * 4, (self.input.side_px as u64).pow(2)]);
        let part = |name, bytes, settings| Part { name, bytes, settings };
        vec![
            part("the program", PROGRAM_BYTES + threads * THREAD_BYTES, "threads"),
            part(
                "records fetched ahead",
                if is_kafka { self.kafka.most_bytes() } else { 0 },
                "kafka.properties: queued.max.messages.kbytes, receive.message.max.bytes",
            ),
            part(
                "dead letters under way",
                if has_letters { sink::dead_letter::MOST_BYTES } else { 0 },
                "kafka.dead_letter_topic",
            ),
            part(
                "bodies of requests",
                product([server.max_pending_body_bytes as u64, BODY_COPIES]),
                "server.max_pending_body_bytes",
            ),
            part(
                "images of requests",
                product([server.max_pending_images as u64, views]),
                "server.max_pending_images, input.side_px",
            ),
        ]
    }
}

#[cfg(test)]
mod tests;
