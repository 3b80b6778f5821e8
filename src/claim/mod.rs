//! Claim checks: records that hold the URI of an image instead of its bytes (content type
//! text/uri-list, RFC 2483). The image is fetched from a store, and only from below the prefixes that
//! are configured.
//!
//! ```text
//!     source -> Intake -> [record, fetch] -> thread -> decode
//!                 |           ^ fetches run on tokio, many at a time
//!                 '-----------'
//! ```
//!
//! Records wait in one bounded queue, claim checks together with what will be their image, and are
//! handed on in its order: the order out is the order in, however long a fetch takes. The source
//! waits for a place in the queue, as it would for one in the next stage, and for nothing else.
//! Without a prefix there is no queue: nothing is fetched, and claim checks are refused on their way.
//!
//! To add a kind of store: a row in `prefix::Kind`, and one where `remote::open` or `cloud::open`
//! builds it.

#[cfg(feature = "cloud")]
mod cloud;
mod config;
mod fetch;
mod intake;
mod local;
mod prefix;
mod remote;
mod unfetched;
mod uri;

#[cfg(test)]
mod fixtures;

pub use config::Config;
pub use intake::start;
pub use unfetched::{Flaw, Forbidden, Unfetched};

use crate::source::Record;
use bytes::Bytes;

/// A record on its way to the decoders.
#[derive(Debug)]
pub struct Arrival {
    /// The record as it came.
    pub record: Record,
    /// Where its image is.
    pub image: Image,
}

/// Where the bytes of a record's image are.
#[derive(Debug)]
pub enum Image {
    /// They are the record's own.
    Inline,
    /// The record is a claim check, and these are what it named.
    Fetched(Bytes),
    /// The record is a claim check, and there is no image for it.
    Missing(Unfetched),
}

impl From<Record> for Arrival {
    fn from(record: Record) -> Self {
        Self { record, image: Image::Inline }
    }
}
