//! The thread that writes checkpoints, so that learning goes on meanwhile.
//!
//! It alone touches the folder, and does one thing at a time, in the order that it is asked. At most one
//! write is in flight: the copy that it is made from is as large as everything that learning changes.

use super::{Back, Checkpoints, Restored, Unwritten, Written};
use anyhow::{Context, Error, Result, anyhow, ensure};
use std::thread::JoinHandle;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};
use tracing::error;

/// What the thread works on: [`Checkpoints`], or what stands in for them in a test.
pub trait Folder: Send {
    /// See [`Checkpoints::write`].
    ///
    /// # Errors
    /// Whatever the file system reports.
    fn write(&mut self, unwritten: &Unwritten) -> Result<Written>;

    /// See [`Checkpoints::go_back`].
    ///
    /// # Errors
    /// Whatever the file system reports.
    fn go_back(&mut self, back: &Back) -> Result<Option<Restored>>;
}

impl Folder for Checkpoints {
    fn write(&mut self, unwritten: &Unwritten) -> Result<Written> {
        Self::write(self, unwritten)
    }

    fn go_back(&mut self, back: &Back) -> Result<Option<Restored>> {
        Self::go_back(self, back)
    }
}

enum Ask {
    Write(Box<Unwritten>),
    GoBack { back: Back, reply: oneshot::Sender<Result<Option<Restored>>> },
}

/// The learner's end of the thread. Dropping it waits for the write in flight.
pub struct Writer {
    /// Gone once the thread is to end.
    asks: Option<mpsc::Sender<Ask>>,
    written: mpsc::Receiver<Result<Written>>,
    is_busy: bool,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread.
    ///
    /// # Errors
    /// A thread that cannot be started.
    pub fn start(folder: impl Folder + 'static) -> Result<Self> {
        let (asks, asked) = mpsc::channel(1);
        let (tell, written) = mpsc::channel(1);
        let thread = std::thread::Builder::new()
            .name("checkpoints".to_owned())
            .spawn(move || work(folder, asked, &tell))
            .context("starting the checkpoint thread")?;
        Ok(Self { asks: Some(asks), written, is_busy: false, thread: Some(thread) })
    }

    /// Whether a write is in flight, or has ended without being heard of.
    pub fn is_busy(&self) -> bool {
        self.is_busy
    }

    /// Hands a copy to the thread, which writes it.
    ///
    /// # Errors
    /// A write in flight; a thread that has ended.
    pub fn begin(&mut self, unwritten: Unwritten) -> Result<()> {
        ensure!(!self.is_busy, "a checkpoint is being written already");
        let asks = self.asks.as_ref().ok_or_else(ended)?;
        asks.try_send(Ask::Write(Box::new(unwritten))).map_err(|_| ended())?;
        self.is_busy = true;
        Ok(())
    }

    /// The checkpoint that was in flight, if it is on disk now.
    ///
    /// # Errors
    /// What befell its writing; a thread that has ended.
    pub fn poll(&mut self) -> Result<Option<Written>> {
        if !self.is_busy {
            return Ok(None);
        }
        match self.written.try_recv() {
            Ok(written) => self.hear(Some(written)).map(Some),
            Err(TryRecvError::Disconnected) => self.hear(None).map(Some),
            Err(TryRecvError::Empty) => Ok(None),
        }
    }

    /// Waits until the checkpoint in flight is on disk, and for ever where none is in flight. Nothing is
    /// lost when it is dropped before.
    ///
    /// # Errors
    /// What befell its writing; a thread that has ended.
    pub async fn written(&mut self) -> Result<Written> {
        if !self.is_busy {
            return std::future::pending().await;
        }
        let written = self.written.recv().await;
        self.hear(written)
    }

    /// Blocks until the checkpoint in flight is on disk; `None` where none is in flight.
    ///
    /// # Errors
    /// What befell its writing; a thread that has ended.
    pub fn finish(&mut self) -> Result<Option<Written>> {
        if !self.is_busy {
            return Ok(None);
        }
        let written = self.written.blocking_recv();
        self.hear(written).map(Some)
    }

    /// See [`Checkpoints::go_back`]; blocks. It comes after a write in flight, whichever way.
    ///
    /// # Errors
    /// Whatever the file system reports; a thread that has ended.
    pub fn go_back(&mut self, back: Back) -> Result<Option<Restored>> {
        let (reply, restored) = oneshot::channel();
        let asks = self.asks.as_ref().ok_or_else(ended)?;
        asks.blocking_send(Ask::GoBack { back, reply }).map_err(|_| ended())?;
        restored.blocking_recv().map_err(|_| ended())?
    }

    fn hear(&mut self, written: Option<Result<Written>>) -> Result<Written> {
        self.is_busy = false;
        written.ok_or_else(ended)?
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.asks = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the checkpoint thread panicked");
        }
        if let Ok(Err(error)) = self.written.try_recv() {
            error!(error = format!("{error:#}"), "the last checkpoint could not be written");
        }
    }
}

fn ended() -> Error {
    anyhow!("the checkpoint thread has ended")
}

fn work(
    mut folder: impl Folder,
    mut asked: mpsc::Receiver<Ask>,
    tell: &mpsc::Sender<Result<Written>>,
) {
    while let Some(ask) = asked.blocking_recv() {
        let is_heard = match ask {
            Ask::Write(unwritten) => tell.blocking_send(folder.write(&unwritten)).is_ok(),
            Ask::GoBack { back, reply } => reply.send(folder.go_back(&back)).is_ok(),
        };
        if !is_heard {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::stand_in::{gated, is_there, unwritten};

    fn step_of(restored: Option<Restored>) -> u64 {
        restored.unwrap().checkpoint.manifest.step
    }

    #[test]
    fn a_slow_write_holds_nobody_up_and_one_is_in_flight() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, gate) = gated(dir.path());
        assert_eq!(writer.finish().unwrap(), None, "none is in flight");
        writer.begin(unwritten(1)).unwrap();
        // It cannot end before the gate opens, and yet we are here.
        assert!(writer.is_busy());
        assert_eq!(writer.poll().unwrap(), None);
        let error = writer.begin(unwritten(2)).unwrap_err().to_string();
        assert!(error.contains("being written already"), "{error}");
        assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none());

        gate.blocking_send(Ok(())).unwrap();
        let written = writer.finish().unwrap().unwrap();
        assert!(is_there(dir.path(), &written.id));
        assert!(!writer.is_busy());
        writer.begin(unwritten(2)).unwrap();
    }

    #[test]
    fn checkpoints_are_told_of_in_the_order_that_they_were_handed_over() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, gate) = gated(dir.path());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for step in 1..=6 {
            writer.begin(unwritten(step)).unwrap();
            gate.blocking_send(Ok(())).unwrap();
            let written = match step % 3 {
                0 => runtime.block_on(writer.written()).unwrap(),
                1 => writer.finish().unwrap().unwrap(),
                _ => loop {
                    if let Some(written) = writer.poll().unwrap() {
                        break written;
                    }
                    std::thread::yield_now();
                },
            };
            assert!(written.id.starts_with(&format!("{step:012}-")), "{}", written.id);
            assert!(is_there(dir.path(), &written.id));
        }
    }

    #[test]
    fn an_error_arrives_whichever_way_it_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, gate) = gated(dir.path());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for way in 0..3 {
            writer.begin(unwritten(way)).unwrap();
            gate.blocking_send(Err(anyhow!("the disk is full"))).unwrap();
            let error = match way {
                0 => writer.finish().map(drop).unwrap_err(),
                1 => runtime.block_on(writer.written()).map(drop).unwrap_err(),
                _ => loop {
                    match writer.poll() {
                        Ok(None) => std::thread::yield_now(),
                        Ok(Some(written)) => panic!("it was to fail, and wrote {}", written.id),
                        Err(error) => break error,
                    }
                },
            };
            assert_eq!(error.to_string(), "the disk is full");
            assert!(!writer.is_busy());
        }
        assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none());
    }

    #[test]
    fn going_back_comes_after_the_write_in_flight() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, gate) = gated(dir.path());
        writer.begin(unwritten(1)).unwrap();
        gate.blocking_send(Ok(())).unwrap();
        assert_eq!(step_of(writer.go_back(Back::Before(5)).unwrap()), 1);
        assert!(writer.finish().unwrap().is_some(), "it is still to be heard of");
        writer.begin(unwritten(9)).unwrap();
        gate.blocking_send(Ok(())).unwrap();
        assert_eq!(step_of(writer.go_back(Back::Before(5)).unwrap()), 1);
        let gone = writer.finish().unwrap().unwrap();
        assert!(!is_there(dir.path(), &gone.id), "what was gone back from is no more");
    }

    #[test]
    fn dropping_it_waits_for_the_write_in_flight() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, gate) = gated(dir.path());
        writer.begin(unwritten(1)).unwrap();
        gate.blocking_send(Ok(())).unwrap();
        drop(writer);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_panic_of_the_thread_is_an_error() {
        struct Broken;
        impl Folder for Broken {
            fn write(&mut self, _: &Unwritten) -> Result<Written> {
                panic!("this test wants it")
            }
            fn go_back(&mut self, _: &Back) -> Result<Option<Restored>> {
                Ok(None)
            }
        }
        let mut writer = Writer::start(Broken).unwrap();
        assert!(writer.go_back(Back::Before(1)).unwrap().is_none());
        writer.begin(unwritten(1)).unwrap();
        assert!(writer.finish().unwrap_err().to_string().contains("has ended"));
        assert!(writer.go_back(Back::Before(1)).unwrap_err().to_string().contains("has ended"));
    }
}
