//! The refusal of a setting: which key, what it was, what is allowed.

use std::fmt::Display;
use std::ops::RangeBounds;

/// A configuration value that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {value} is not allowed: {allowed}")]
pub struct Invalid {
    /// The dotted key, `learner.batch_images`.
    pub key: String,
    /// The value as it was given.
    pub value: String,
    /// What would have been accepted, in words.
    pub allowed: String,
}

impl Invalid {
    /// A refusal of `value` under `key`; `allowed` ends the sentence "it must be ...".
    pub fn new(key: &str, value: impl Display, allowed: impl Display) -> Self {
        Self {
            key: key.to_owned(),
            value: value.to_string(),
            allowed: format!("it must be {allowed}"),
        }
    }
}

/// Checks that `value` lies in `range`.
pub fn within<T: PartialOrd + Display>(
    key: &str,
    value: T,
    range: impl RangeBounds<T>,
    allowed: &str,
) -> Result<(), Invalid> {
    if range.contains(&value) { Ok(()) } else { Err(Invalid::new(key, value, allowed)) }
}

/// Checks that `value` is a probability.
pub fn probability(key: &str, value: f32) -> Result<(), Invalid> {
    within(key, value, 0.0..=1.0, "a probability from 0 to 1")
}

/// Checks an ordered pair inside `range`.
pub fn ordered_pair(
    key: &str,
    [low, high]: [f32; 2],
    range: impl RangeBounds<f32>,
    allowed: &str,
) -> Result<(), Invalid> {
    if low <= high && range.contains(&low) && range.contains(&high) {
        Ok(())
    } else {
        Err(Invalid::new(key, format!("[{low}, {high}]"), allowed))
    }
}
