//! The `[claims]` section.

use super::prefix::{self, Prefix};
use crate::setting::{Invalid, within};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// `[claims]`: what claim checks may name, and how it is fetched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// URIs of folders, each with a slash at its end; only what lies below one of them is fetched. Empty,
    /// every claim check is refused.
    pub prefixes: Vec<String>,
    /// The largest object, in bytes; unset, `image.max_bytes`.
    pub max_bytes: Option<usize>,
    /// The longest time for one object, attempts and waits included.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// How often a request that failed is tried again, with waits that grow from 100 ms.
    pub retries: usize,
    /// Most objects that are being fetched, or wait for one before them, at a time.
    pub concurrency: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            prefixes: vec![],
            max_bytes: None,
            // A guess: what object_store gives one request.
            timeout: Duration::from_secs(30),
            // A guess: with the waits some 1.5 s at most, which a restart of a proxy may take.
            retries: 3,
            // A guess: 16 objects of some 100 ms each are 160 images a second.
            concurrency: 16,
        }
    }
}

impl Config {
    /// The most records that wait for an image, or behind one that does.
    pub fn most_records(&self) -> usize {
        if self.prefixes.is_empty() { 0 } else { self.concurrency }
    }

    /// Checks every value; `image_max_bytes` is `image.max_bytes`, which holds for all images.
    ///
    /// # Errors
    /// The first value that is not allowed, by key.
    pub fn validate(&self, image_max_bytes: usize) -> Result<(), Invalid> {
        for text in &self.prefixes {
            if Prefix::read(text).is_none() {
                return Err(Invalid::new("claims.prefixes", text, prefix::ALLOWED));
            }
        }
        let max_bytes = self.max_bytes.unwrap_or(image_max_bytes);
        let allowed = format!("from 1 to image.max_bytes, {image_max_bytes}");
        within("claims.max_bytes", max_bytes, 1..=image_max_bytes, &allowed)?;
        let seconds = self.timeout.as_secs_f64();
        within("claims.timeout", seconds, 0.1..=3600.0, "from 100ms to 1h")?;
        within("claims.retries", self.retries, 0..=100, "from 0 to 100")?;
        // The queue of those that wait is one shorter, and a queue has a place.
        within("claims.concurrency", self.concurrency, 2..=1024, "from 2 to 1024")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_is_checked_by_name() {
        let with = Config::default;
        with().validate(1).unwrap();
        let prefixes = vec!["file:///a/".to_owned(), "https://host/b".to_owned()];
        for (key, config) in [
            ("claims.prefixes", Config { prefixes, ..with() }),
            ("claims.max_bytes", Config { max_bytes: Some(0), ..with() }),
            ("claims.max_bytes", Config { max_bytes: Some(1001), ..with() }),
            ("claims.timeout", Config { timeout: Duration::ZERO, ..with() }),
            ("claims.retries", Config { retries: 101, ..with() }),
            ("claims.concurrency", Config { concurrency: 1, ..with() }),
        ] {
            assert_eq!(config.validate(1000).unwrap_err().key, key);
        }
    }
}
