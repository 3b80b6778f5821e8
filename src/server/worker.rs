//! The threads that compute: one pool decodes and prepares, one thread batches and embeds with a
//! rayon pool of its own. Nothing here runs on tokio's workers or on rayon's global pool.
//!
//! ```text
//! embed() --images--> jobs --decode threads--> views --encode thread: Queue--> embeddings
//! ```
//!
//! Both channels are bounded, and every image in them holds its permit of `max_pending_images`.

use super::error::Error;
use super::prepare::{self, Payload, Refusal};
use super::queue::{Batch, Next, Queue, Rule};
use super::{Config, embed};
use crate::decode;
use crate::snapshot::Snapshot;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;
use std::{io, thread};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout_at;

/// Why an image has no embedding.
#[derive(Debug)]
pub(super) enum Failure {
    /// The image's fault.
    Refused(Refusal),
    /// Ours, and logged.
    Internal,
}

/// The place of one image in the queues, and the way back to its caller.
pub(super) struct Ticket {
    reply: oneshot::Sender<Result<Vec<f32>, Failure>>,
    room: OwnedSemaphorePermit,
}

impl Ticket {
    /// Whether the caller has disconnected, so that nobody would read the answer.
    pub(super) fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    pub(super) fn answer(self, result: Result<Vec<f32>, Failure>) {
        // First, or a client's next request could find its last one's room still taken.
        drop(self.room);
        // A caller that left meanwhile needs no answer.
        let _ = self.reply.send(result);
    }
}

/// An image to decode and prepare.
struct Job {
    snapshot: Arc<Snapshot>,
    payload: Payload,
    /// Of the request's body, which the payload keeps in memory.
    _body: Arc<OwnedSemaphorePermit>,
    ticket: Ticket,
}

/// An image to embed.
pub(super) struct View {
    snapshot: Arc<Snapshot>,
    since: Instant,
    /// Flat `[H, W, C]`.
    pub(super) pixels: Vec<f32>,
    pub(super) ticket: Ticket,
}

/// The snapshot of a batch; equal when it is the same one.
#[derive(Clone)]
struct Lot(Arc<Snapshot>);

impl PartialEq for Lot {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// The running threads. Dropping it lets them finish what they have begun, and joins them.
pub(super) struct Workers {
    jobs: Option<mpsc::Sender<Job>>,
    room: Arc<Semaphore>,
    max_pending_images: usize,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts the threads of `config`.
    ///
    /// # Errors
    /// When the system grants no thread or no timer.
    pub(super) fn start(config: &Config, decode: decode::Config) -> io::Result<Self> {
        // With a place for each permit, sending a job never waits.
        let (jobs, waiting_jobs) = mpsc::channel(config.max_pending_images);
        let (views, waiting_views) = mpsc::channel(config.max_batch_images);
        let mut workers = Self {
            jobs: Some(jobs),
            room: Arc::new(Semaphore::new(config.max_pending_images)),
            max_pending_images: config.max_pending_images,
            threads: Vec::with_capacity(config.threads + 1),
        };
        let waiting_jobs = Arc::new(Mutex::new(waiting_jobs));
        let decode = Arc::new(decode);
        for index in 0..config.threads {
            let (jobs, views) = (Arc::clone(&waiting_jobs), views.clone());
            let decode = Arc::clone(&decode);
            workers.spawn(format!("serve-decode-{index}"), move || {
                prepare_until_closed(&jobs, &views, &decode);
            })?;
        }
        // The timer of the batching rule: the encode thread must outlive no runtime but its own.
        let timer = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(config.threads)
            .thread_name(|index| format!("serve-embed-{index}"))
            .build()
            .map_err(io::Error::other)?;
        let rule = Rule { max_items: config.max_batch_images, max_wait: config.max_batch_wait };
        workers.spawn("serve-encode".to_owned(), move || {
            let (mut views, mut queue) = (waiting_views, Queue::new(rule));
            while let Some(batch) = timer.block_on(next_batch(&mut views, &mut queue)) {
                embed::answer(&pool, &batch.kind.0, batch.items);
            }
        })?;
        Ok(workers)
    }

    fn spawn(&mut self, name: String, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(thread::Builder::new().name(name).spawn(run)?);
        Ok(())
    }

    /// Images accepted and not answered yet.
    pub(super) fn pending_images(&self) -> usize {
        self.max_pending_images - self.room.available_permits()
    }

    /// Embeds `images` by `snapshot`, in order; each embedding is `[D]`, as the encoder made it.
    ///
    /// # Errors
    /// `Overloaded` if they find no room, at once; otherwise of the first image that failed.
    pub(super) async fn embed(
        &self,
        snapshot: &Arc<Snapshot>,
        images: Vec<Payload>,
        body: OwnedSemaphorePermit,
    ) -> Result<Vec<Vec<f32>>, Error> {
        let jobs = self.jobs.as_ref().expect("only drop takes it");
        let n_images = u32::try_from(images.len()).map_err(|_| Error::Overloaded)?;
        let mut room = Arc::clone(&self.room)
            .try_acquire_many_owned(n_images)
            .map_err(|_| Error::Overloaded)?;
        let body = Arc::new(body);
        let mut answers = Vec::with_capacity(images.len());
        for payload in images {
            let (reply, answer) = oneshot::channel();
            let room = room.split(1).expect("there is one permit for each image");
            let ticket = Ticket { reply, room };
            let (snapshot, _body) = (Arc::clone(snapshot), Arc::clone(&body));
            let job = Job { snapshot, payload, _body, ticket };
            jobs.send(job).await.map_err(|_| Error::Internal)?;
            answers.push(answer);
        }
        drop(body);
        let mut embeddings = Vec::with_capacity(answers.len());
        for (index, answer) in answers.into_iter().enumerate() {
            match answer.await {
                Ok(Ok(embedding)) => embeddings.push(embedding),
                Ok(Err(Failure::Refused(refusal))) => {
                    return Err(Error::Image { index, refusal });
                }
                Ok(Err(Failure::Internal)) | Err(_) => return Err(Error::Internal),
            }
        }
        Ok(embeddings)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A panic in it has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

/// One decode thread, until nobody can send a job any more.
fn prepare_until_closed(
    jobs: &Mutex<mpsc::Receiver<Job>>,
    views: &mpsc::Sender<View>,
    config: &decode::Config,
) {
    loop {
        // Bound first, so that the lock is free again before the work begins.
        let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
        let Some(Job { snapshot, payload, _body, ticket }) = next else { return };
        if ticket.is_abandoned() {
            continue;
        }
        let preprocess = &snapshot.preprocess;
        let work = AssertUnwindSafe(|| prepare::prepare(&payload, config, preprocess));
        let pixels = match catch_unwind(work) {
            Ok(Ok(pixels)) => pixels,
            Ok(Err(refusal)) => {
                ticket.answer(Err(Failure::Refused(refusal)));
                continue;
            }
            // The panic hook has reported it; the thread lives on.
            Err(_) => {
                ticket.answer(Err(Failure::Internal));
                continue;
            }
        };
        drop(payload);
        let view = View { snapshot, since: Instant::now(), pixels, ticket };
        if views.blocking_send(view).is_err() {
            return;
        }
    }
}

/// The next batch, or none when no view can come any more and none is left.
async fn next_batch(
    views: &mut mpsc::Receiver<View>,
    queue: &mut Queue<Lot, View>,
) -> Option<Batch<Lot, View>> {
    loop {
        // All that came while the encoder was busy.
        while let Ok(view) = views.try_recv() {
            wait(queue, view);
        }
        let received = match queue.next(Instant::now()) {
            Next::Batch(batch) => return Some(batch),
            Next::Empty => views.recv().await,
            Next::WaitUntil(deadline) => match timeout_at(deadline.into(), views.recv()).await {
                Ok(received) => received,
                Err(_) => continue,
            },
        };
        match received {
            Some(view) => wait(queue, view),
            None => return queue.take_oldest(),
        }
    }
}

fn wait(queue: &mut Queue<Lot, View>, view: View) {
    queue.push(Lot(Arc::clone(&view.snapshot)), view.since, view);
}
