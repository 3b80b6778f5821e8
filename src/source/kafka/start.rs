//! Where a partition that nobody has read begins.

use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where to begin: `earliest`, `latest`, or a time such as `2026-11-01T06:00:00Z`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum StartAt {
    /// The oldest message that the broker has.
    #[default]
    Earliest,
    /// Only what comes from now on.
    Latest,
    /// The first message of this time or later, in milliseconds since the Unix epoch.
    Time(i64),
}

/// A start that is none.
#[derive(Clone, Debug, thiserror::Error)]
#[error("it must be \"earliest\", \"latest\" or a time such as \"2026-11-01T06:00:00Z\"")]
pub struct NoStart;

impl TryFrom<String> for StartAt {
    type Error = NoStart;

    fn try_from(text: String) -> Result<Self, NoStart> {
        match &text[..] {
            "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            time => {
                let time = humantime::parse_rfc3339_weak(time).map_err(|_| NoStart)?;
                let since = time.duration_since(UNIX_EPOCH).map_err(|_| NoStart)?;
                i64::try_from(since.as_millis()).map(Self::Time).map_err(|_| NoStart)
            }
        }
    }
}

impl From<StartAt> for String {
    fn from(start: StartAt) -> Self {
        match start {
            StartAt::Earliest => "earliest".to_owned(),
            StartAt::Latest => "latest".to_owned(),
            StartAt::Time(ms) => {
                let since = Duration::from_millis(u64::try_from(ms).unwrap_or_default());
                humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + since).to_string()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_times_are_read_and_written() {
        for (text, start) in [
            ("earliest", StartAt::Earliest),
            ("latest", StartAt::Latest),
            ("2026-11-01T06:00:00Z", StartAt::Time(1_793_512_800_000)),
        ] {
            let read = StartAt::try_from(text.to_owned()).unwrap();
            assert_eq!(read, start, "{text}");
            assert_eq!(StartAt::try_from(String::from(read)).unwrap(), start);
        }
        for text in ["", "now", "2026-13-01T00:00:00Z", "1969-01-01T00:00:00Z"] {
            assert!(StartAt::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
