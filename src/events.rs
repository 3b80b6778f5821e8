//! What happens to a run that somebody may want to hear of, as it happens.
//!
//! Whoever tells an event never waits: each listener has a bounded queue, and one that is too slow misses the
//! oldest and hears how many they were.

use serde::Serialize;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::broadcast;

/// Events that wait for a listener.
const QUEUE: usize = 256;

/// What happens.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// A version went live.
    Published {
        /// Which.
        version: String,
        /// Steps taken before it.
        step: u64,
    },
    /// A candidate did not pass the gate.
    Refused {
        /// Steps taken before it.
        step: u64,
        /// The bounded reason.
        reason: &'static str,
    },
    /// A version has become stable.
    Stable {
        /// Which.
        version: String,
        /// Steps taken before it.
        step: u64,
    },
    /// Learning went wrong and returned to an older checkpoint.
    WentBack {
        /// The bounded reason.
        reason: &'static str,
        /// Steps taken when it went wrong.
        from_step: u64,
        /// Steps taken before the checkpoint.
        to_step: u64,
    },
    /// What arrives has changed.
    Drift {
        /// The record at which it was told, `topic/partition@offset`.
        origin: String,
        /// Standard deviations above the usual distance.
        score: f64,
    },
    /// The training loss has risen and stays up; nothing follows from it.
    LossWarning {
        /// Steps taken.
        step: u64,
        /// The last loss, in nats.
        loss: f32,
        /// The mean of those before.
        usual: f64,
    },
}

/// An event with its time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Told {
    /// Milliseconds since the Unix epoch.
    pub time_ms: i64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

impl Told {
    /// The name of its type, and all of it as JSON.
    pub fn to_json(&self) -> (String, String) {
        let value = serde_json::to_value(self).unwrap_or_default();
        (value["type"].as_str().unwrap_or("event").to_owned(), value.to_string())
    }
}

/// Where events are told and heard.
#[derive(Clone, Debug)]
pub struct Events(broadcast::Sender<Told>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::channel(QUEUE).0)
    }
}

impl Events {
    /// Tells all who listen.
    pub fn tell(&self, event: Event) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let time_ms = since.map_or(0, |since| since.as_millis() as i64);
        // Without a listener there is nobody to tell.
        drop(self.0.send(Told { time_ms, event }));
    }

    /// How many listen.
    pub fn listeners(&self) -> usize {
        self.0.receiver_count()
    }

    /// Hears what is told from now on.
    pub fn listen(&self) -> broadcast::Receiver<Told> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_listeners_hear_and_a_slow_one_is_told_what_it_missed() {
        let events = Events::default();
        events.tell(Event::Refused { step: 0, reason: "nobody listens" });
        let (mut fast, mut slow) = (events.listen(), events.listen());
        for step in 0..2 * QUEUE as u64 {
            events.tell(Event::Published { version: "a".to_owned(), step });
            let heard = fast.recv().await.unwrap().event;
            assert_eq!(heard, Event::Published { version: "a".to_owned(), step });
        }
        let missed = slow.recv().await.unwrap_err();
        assert_eq!(missed, broadcast::error::RecvError::Lagged(QUEUE as u64));
    }

    #[test]
    fn an_event_is_one_flat_object() {
        let event = Event::Drift { origin: "images/0@7".to_owned(), score: 6.5 };
        let (kind, told) = Told { time_ms: 5, event }.to_json();
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert_eq!(kind, "drift");
        let expected = serde_json::json!({ "time_ms": 5, "type": "drift", "origin": "images/0@7", "score": 6.5 });
        assert_eq!(told, expected);
    }
}
