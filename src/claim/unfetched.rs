//! Why a claim check did not become the bytes of an image.

use super::uri::MAX_URI_BYTES;
use std::error::Error;
use std::time::Duration;

/// Whatever the store reported.
type Cause = Box<dyn Error + Send + Sync>;

/// A claim check without its image, with everything that its sender needs to know.
#[derive(Debug, thiserror::Error)]
pub enum Unfetched {
    /// The message is not one URI of an object.
    #[error("the claim check is malformed: {0}")]
    Malformed(Flaw),
    /// The object is none of ours to read.
    #[error("the claim check {uri:?} is not allowed: {why}")]
    NotAllowed {
        /// The URI as it came.
        uri: String,
        /// Which rule says so.
        why: Forbidden,
    },
    /// The store has no such object.
    #[error("the store has nothing at {uri:?}")]
    NotFound {
        /// The URI as it came.
        uri: String,
        /// What the store said.
        #[source]
        source: Cause,
    },
    /// More bytes than `claims.max_bytes`.
    #[error("the object at {uri:?} has more than {max_bytes} bytes, which claims.max_bytes allows")]
    TooLarge {
        /// The URI as it came.
        uri: String,
        /// The limit.
        max_bytes: usize,
    },
    /// Not all of it came within `claims.timeout`.
    #[error("fetching {uri:?} took longer than {timeout:?}, which claims.timeout allows")]
    TimedOut {
        /// The URI as it came.
        uri: String,
        /// The limit.
        timeout: Duration,
    },
    /// The store could not be reached or would not answer, not by `claims.retries` more attempts either.
    #[error("{uri:?} cannot be fetched")]
    Unreachable {
        /// The URI as it came.
        uri: String,
        /// What went wrong.
        #[source]
        source: Cause,
    },
}

/// What is wrong with the form of a claim check.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// Not text.
    #[error("it is not UTF-8")]
    NotText,
    /// Nothing but comments.
    #[error("it holds no URI")]
    NoUri,
    /// A list.
    #[error("it holds {uris} URIs, allowed is one")]
    Several {
        /// How many.
        uris: usize,
    },
    /// A long URI.
    #[error("its URI has {bytes} bytes, allowed are {max}", max = MAX_URI_BYTES)]
    TooLong {
        /// How long.
        bytes: usize,
    },
    /// A character that no URI has, and that readers of URIs disagree about.
    #[error("its URI has the character {character:?}")]
    Character {
        /// Which.
        character: char,
    },
    /// Not a URI, or a relative one.
    #[error("its URI cannot be read: {0}")]
    Syntax(url::ParseError),
    /// A part that an object's name has no room for.
    #[error("its URI has {part}, which the name of an object has not")]
    Extra {
        /// "user info", "a query" or "a fragment".
        part: &'static str,
    },
    /// A slash or backslash in percent-encoding, or a name that no store has.
    #[error("the path of its URI names no object: {problem}")]
    Path {
        /// Why not.
        problem: String,
    },
}

/// Why an object is none of ours to read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// No prefix covers it.
    #[error("it lies below none of claims.prefixes")]
    Elsewhere,
    /// A symbolic link leads out of the prefix.
    #[error("a symbolic link leads out of its prefix")]
    Link,
    /// The server sends us on.
    #[error("the server redirects to {to:?}, and redirects are not followed")]
    Redirect {
        /// Where to.
        to: String,
    },
}

impl Unfetched {
    /// Every value of [`Self::reason`].
    pub const REASONS: [&'static str; 6] = [
        "claim_malformed",
        "claim_not_allowed",
        "claim_not_found",
        "claim_too_large",
        "claim_timed_out",
        "claim_unreachable",
    ];

    /// The kind of refusal as a metric's label, one of [`Self::REASONS`].
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "claim_malformed",
            Self::NotAllowed { .. } => "claim_not_allowed",
            Self::NotFound { .. } => "claim_not_found",
            Self::TooLarge { .. } => "claim_too_large",
            Self::TimedOut { .. } => "claim_timed_out",
            Self::Unreachable { .. } => "claim_unreachable",
        }
    }

    pub(super) fn not_allowed(uri: &str, why: Forbidden) -> Self {
        Self::NotAllowed { uri: uri.to_owned(), why }
    }

    pub(super) fn not_found(uri: &str, source: impl Into<Cause>) -> Self {
        Self::NotFound { uri: uri.to_owned(), source: source.into() }
    }

    pub(super) fn unreachable(uri: &str, source: impl Into<Cause>) -> Self {
        Self::Unreachable { uri: uri.to_owned(), source: source.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_those_listed_each_once() {
        let uri = "file:///a".to_owned();
        let one_of_each = [
            Unfetched::Malformed(Flaw::NoUri),
            Unfetched::not_allowed(&uri, Forbidden::Link),
            Unfetched::not_found(&uri, "it"),
            Unfetched::TooLarge { uri: uri.clone(), max_bytes: 1 },
            Unfetched::TimedOut { uri: uri.clone(), timeout: Duration::from_secs(1) },
            Unfetched::unreachable(&uri, "it"),
        ];
        assert_eq!(one_of_each.each_ref().map(Unfetched::reason), Unfetched::REASONS);
    }

    #[test]
    fn a_message_names_what_is_wrong_and_what_is_allowed() {
        let several = Unfetched::Malformed(Flaw::Several { uris: 3 });
        let message = several.to_string();
        assert_eq!(message, "the claim check is malformed: it holds 3 URIs, allowed is one");
        let large = Unfetched::TooLarge { uri: "file:///a".to_owned(), max_bytes: 7 };
        assert!(large.to_string().contains("more than 7 bytes"), "{large}");
        let gone = Unfetched::unreachable("http://a/b", "the cause");
        assert_eq!(gone.source().unwrap().to_string(), "the cause");
    }
}
