//! The form of a claim check: one URI in a list of them (RFC 2483, section 5), brought to one normal
//! form before anything is decided by it.

use super::unfetched::Flaw;
use crate::source::Record;
use object_store::path::Path;
use url::{Position, Url};

/// The content type of a claim check.
const CONTENT_TYPE: &str = "text/uri-list";
/// The longest URI; what all should at least support (RFC 9110, section 4.1).
pub(super) const MAX_URI_BYTES: usize = 8000;

/// Whether `record` holds a claim check instead of an image.
pub(super) fn is_claim(record: &Record) -> bool {
    // Parameters and case carry no meaning (RFC 9110, section 8.3.1).
    let is_list = |content_type: &str| {
        let essence = content_type.split(';').next().unwrap_or_default();
        essence.trim().eq_ignore_ascii_case(CONTENT_TYPE)
    };
    !record.is_skipped && record.header("content-type").is_some_and(is_list)
}

/// The one URI of a list; lines that begin with `#` are comments.
pub(super) fn only_uri(list: &[u8]) -> Result<&str, Flaw> {
    let text = std::str::from_utf8(list).map_err(|_| Flaw::NotText)?;
    let lines = text.lines().map(str::trim);
    let mut uris = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let uri = uris.next().ok_or(Flaw::NoUri)?;
    match uris.count() {
        0 => Ok(uri),
        more => Err(Flaw::Several { uris: more + 1 }),
    }
}

/// A URI in its normal form: two that name one object are equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Normal {
    /// The scheme in lower case.
    pub(super) scheme: String,
    /// A host or a bucket; files have none.
    pub(super) host: Option<String>,
    /// Scheme, host, and port where it is not the scheme's own: `https://host:8443`.
    pub(super) site: String,
    /// The path, decoded once, without `.`, `..` and empty segments.
    pub(super) path: Path,
    /// Whether it ended in a slash.
    pub(super) is_folder: bool,
}

impl Normal {
    /// Reads `uri`. What the path says after decoding is what is compared and what is fetched, so
    /// that nobody after us reads it in another way.
    ///
    /// # Errors
    /// Whatever has no such form.
    pub(super) fn read(uri: &str) -> Result<Self, Flaw> {
        if uri.len() > MAX_URI_BYTES {
            return Err(Flaw::TooLong { bytes: uri.len() });
        }
        // The parser drops tabs and reads a backslash as a slash, where others don't.
        let is_odd = |c: &char| c.is_control() || c.is_whitespace() || *c == '\\';
        if let Some(character) = uri.chars().find(is_odd) {
            return Err(Flaw::Character { character });
        }
        let url = Url::parse(uri).map_err(Flaw::Syntax)?;
        let extra = |part| Err(Flaw::Extra { part });
        if !url.username().is_empty() || url.password().is_some() {
            return extra("user info");
        } else if url.query().is_some() {
            return extra("a query");
        } else if url.fragment().is_some() {
            return extra("a fragment");
        }
        let encoded = url.path().to_ascii_lowercase();
        if encoded.contains("%2f") || encoded.contains("%5c") {
            let problem = "a slash or backslash is percent-encoded".to_owned();
            return Err(Flaw::Path { problem });
        }
        let path = Path::from_url_path(url.path())
            .map_err(|error| Flaw::Path { problem: error.to_string() })?;
        Ok(Self {
            scheme: url.scheme().to_owned(),
            host: url.host_str().map(str::to_owned),
            site: url[..Position::BeforePath].to_owned(),
            is_folder: url.path().ends_with('/'),
            path,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::record;
    use super::*;

    #[test]
    fn a_claim_is_told_by_its_content_type_alone() {
        let uri = "file:///data/a.png";
        for content_type in ["text/uri-list", "TEXT/URI-LIST", " text/uri-list ; charset=utf-8"] {
            assert!(is_claim(&record(0, uri, Some(content_type))), "{content_type}");
        }
        for content_type in [None, Some("text/plain"), Some("image/png"), Some("text/uri-lists")] {
            assert!(!is_claim(&record(0, uri, content_type)), "{content_type:?}");
        }
        let mut skipped = record(0, uri, Some("text/uri-list"));
        skipped.is_skipped = true;
        assert!(!is_claim(&skipped));
    }

    #[test]
    fn a_list_holds_one_uri_among_comments() {
        for list in [
            "file:///a",
            "file:///a\r\n",
            "# camera 3\r\nfile:///a\r\n# file:///b\r\n",
            "\n  file:///a  \n\n",
        ] {
            assert_eq!(only_uri(list.as_bytes()), Ok("file:///a"), "{list:?}");
        }
        for (list, flaw) in [
            ("", Flaw::NoUri),
            ("# file:///a\r\n", Flaw::NoUri),
            ("file:///a\nfile:///a", Flaw::Several { uris: 2 }),
            ("file:///a\r\n#\r\nfile:///b\r\nfile:///c\r\n", Flaw::Several { uris: 3 }),
        ] {
            assert_eq!(only_uri(list.as_bytes()), Err(flaw), "{list:?}");
        }
        assert_eq!(only_uri(b"file:///\xff"), Err(Flaw::NotText));
    }

    #[test]
    fn equal_names_have_one_normal_form() {
        for (uri, site, path) in [
            ("https://Host.Example:443/a/./b/../c%2Epng", "https://host.example", "a/c.png"),
            ("HTTPS://host.example/a/%63.png", "https://host.example", "a/c.png"),
            ("http://host:8080/a/%2e%2E/c.png", "http://host:8080", "c.png"),
            ("file:///data/../../etc/x", "file://", "etc/x"),
            ("file://localhost/data/x", "file://", "data/x"),
            ("s3://bucket/cam/../../x", "s3://bucket", "x"),
            ("https://host/%252e%252e/x", "https://host", "%2e%2e/x"),
            ("https://host/caf%C3%A9", "https://host", "caf\u{e9}"),
        ] {
            let normal = Normal::read(uri).unwrap();
            assert_eq!((&*normal.site, normal.path.as_ref()), (site, path), "{uri}");
        }
    }

    #[test]
    fn what_has_no_normal_form_is_named() {
        let part = |part| Flaw::Extra { part };
        for (uri, flaw) in [
            ("https://me@host/a", part("user info")),
            ("https://me:secret@host/a", part("user info")),
            ("https://host/a?b", part("a query")),
            ("https://host/a?", part("a query")),
            ("https://host/a#b", part("a fragment")),
            ("https:\\\\host\\a", Flaw::Character { character: '\\' }),
            ("https://host/a\tb", Flaw::Character { character: '\t' }),
            ("https://host/a b", Flaw::Character { character: ' ' }),
            ("a.png", Flaw::Syntax(url::ParseError::RelativeUrlWithoutBase)),
        ] {
            assert_eq!(Normal::read(uri), Err(flaw), "{uri}");
        }
        for uri in [
            "https://host/a%2Fb",
            "https://host/a%2f..%2f..%2fb",
            "https://host/..%5Cb",
            "https://host/a//b",
            "https://host/a%00",
            "https://host/a%0Ab",
            "https://host/%ff",
        ] {
            assert!(matches!(Normal::read(uri), Err(Flaw::Path { .. })), "{uri}");
        }
        let long = format!("https://host/{}", "a".repeat(MAX_URI_BYTES));
        assert_eq!(Normal::read(&long), Err(Flaw::TooLong { bytes: long.len() }));
    }
}
