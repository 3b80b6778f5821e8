//! Where images come from. A source hands records on in the order of their offsets.

use bytes::Bytes;
use std::fmt;
use std::sync::Arc;

pub mod collection;

/// Where a record stands in its stream; it names the record everywhere downstream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// Topic, or the folder source's name.
    pub topic: Arc<str>,
    /// Partition within the topic.
    pub partition: i32,
    /// Offset within the partition.
    pub offset: i64,
}

impl Origin {
    /// A 64-bit hash, equal on every machine: it seeds the views of the record.
    pub fn seed(&self) -> u64 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.topic.as_bytes());
        hasher.update(&self.partition.to_le_bytes());
        hasher.update(&self.offset.to_le_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        u64::from_le_bytes(first)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}@{}", self.topic, self.partition, self.offset)
    }
}

/// One message as it came: nothing of it has been looked at yet.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its place in the stream.
    pub origin: Origin,
    /// Which assignment of its partition delivered it; a record of an older one is dropped.
    pub generation: u64,
    /// The image's bytes.
    pub bytes: Bytes,
    /// Broker timestamp, milliseconds since the Unix epoch.
    pub timestamp_ms: Option<i64>,
    /// Message key.
    pub key: Option<Bytes>,
    /// Message headers, in order.
    pub headers: Vec<(String, Option<Bytes>)>,
}

impl Record {
    /// The first header called `name` (in any case) as text, if it is UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(value.as_deref()?).ok()
    }
}
