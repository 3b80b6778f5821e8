//! Which objects may be fetched: those below the configured prefixes.

use super::unfetched::{Flaw, Forbidden, Unfetched};
use super::uri::{self, Normal};
use object_store::path::Path;

/// A folder of a store, below which objects may be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prefix {
    pub(super) kind: Kind,
    /// Scheme, host or bucket, and port.
    pub(super) site: String,
    pub(super) folder: Path,
}

/// The stores there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Http,
    #[cfg(feature = "cloud")]
    S3,
    #[cfg(feature = "cloud")]
    Google,
    #[cfg(feature = "cloud")]
    Azure,
}

/// What a prefix may be, in words.
#[cfg(not(feature = "cloud"))]
pub(super) const ALLOWED: &str = "file:///FOLDER/, http://HOST/ or https://HOST/FOLDER/, ending in a slash \
                                  (s3://, gs:// and az:// in builds with the feature cloud)";
#[cfg(feature = "cloud")]
pub(super) const ALLOWED: &str = "file:///FOLDER/, http://HOST/, https://HOST/FOLDER/, s3://BUCKET/, \
                                  gs://BUCKET/ or az://CONTAINER/, ending in a slash";

impl Kind {
    /// The kind of a scheme, and whether its URIs name a host or bucket.
    fn of(scheme: &str) -> Option<(Self, bool)> {
        match scheme {
            "file" => Some((Self::File, false)),
            "http" | "https" => Some((Self::Http, true)),
            #[cfg(feature = "cloud")]
            "s3" => Some((Self::S3, true)),
            #[cfg(feature = "cloud")]
            "gs" => Some((Self::Google, true)),
            #[cfg(feature = "cloud")]
            "az" => Some((Self::Azure, true)),
            _ => None,
        }
    }
}

impl Prefix {
    /// Reads a configured prefix; `None` if it is not [`ALLOWED`].
    pub(super) fn read(text: &str) -> Option<Self> {
        let Normal { scheme, host, site, path, is_folder } = Normal::read(text).ok()?;
        let (kind, has_host) = Kind::of(&scheme)?;
        let fits = is_folder && host.is_some() == has_host;
        fits.then_some(Self { kind, site, folder: path })
    }

    /// Whether an object lies below it. Paths are compared by whole segments.
    fn covers(&self, object: &Normal) -> bool {
        let is_below = object.path.prefix_matches(&self.folder) && object.path != self.folder;
        object.site == self.site && is_below
    }
}

/// An object that may be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The URI as it came.
    pub(super) uri: String,
    /// Which of the prefixes covers it.
    pub(super) prefix: usize,
    /// Its name at the prefix's site.
    pub(super) path: Path,
}

/// What the claim check `list` names, if it lies below one of `prefixes`.
///
/// # Errors
/// A malformed claim check, or one that is not allowed.
pub(super) fn place<'a>(
    list: &[u8],
    mut prefixes: impl Iterator<Item = &'a Prefix>,
) -> Result<Place, Unfetched> {
    let uri = uri::only_uri(list).map_err(Unfetched::Malformed)?;
    let object = Normal::read(uri).map_err(Unfetched::Malformed)?;
    if object.is_folder {
        let problem = "it ends in a slash".to_owned();
        return Err(Unfetched::Malformed(Flaw::Path { problem }));
    }
    match prefixes.position(|prefix| prefix.covers(&object)) {
        Some(prefix) => Ok(Place { uri: uri.to_owned(), prefix, path: object.path }),
        None => Err(Unfetched::not_allowed(uri, Forbidden::Elsewhere)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::test_runner::TestRunner;
    use url::Url;

    fn prefixes() -> Vec<Prefix> {
        let read = |text| Prefix::read(text).unwrap();
        ["file:///data/images/", "https://host/cam/", "http://host:8080/", "https://host/c%C3%A9/"]
            .map(read)
            .into()
    }

    fn reason(uri: &str) -> Result<usize, &'static str> {
        let place = place(uri.as_bytes(), prefixes().iter());
        place.map(|place| place.prefix).map_err(|unfetched| unfetched.reason())
    }

    #[test]
    fn prefixes_are_folders_of_stores_that_are_built_in() {
        for text in [
            "file:///data/images",
            "file://host/data/",
            "https://host/cam",
            "https://me@host/cam/",
            "https://host/cam/?x=/",
            "ftp://host/cam/",
            "data:image/png;base64,AAAA/",
            "images/",
            "",
        ] {
            assert_eq!(Prefix::read(text), None, "{text}");
        }
        assert_eq!(Prefix::read("s3://bucket/cam/").is_some(), cfg!(feature = "cloud"));
        let root = Prefix::read("https://HOST:443").unwrap();
        assert_eq!((&*root.site, root.folder.as_ref()), ("https://host", ""));
    }

    #[test]
    fn what_lies_below_a_prefix_is_allowed_and_nothing_else() {
        for (uri, prefix) in [
            ("file:///data/images/a.png", 0),
            ("file://localhost/data/images/b/../a.png", 0),
            ("file:///data/x/../images/%61.png", 0),
            ("HTTPS://Host:443/cam/1/a.png", 1),
            ("http://host:8080/anything", 2),
            ("https://host/c%c3%a9/a", 3),
            ("https://host/c\u{e9}/a", 3),
        ] {
            assert_eq!(reason(uri), Ok(prefix), "{uri}");
        }
        for uri in [
            "file:///data/images",
            "file:///data/images/../secret",
            "file:///data/images/%2e%2e/secret",
            "file:///data/images/.%2E/secret",
            "file:///data/images2/a.png",
            "file:///etc/passwd",
            "file://host/data/images/a.png",
            "http://host/cam/a.png",
            "https://host:444/cam/a.png",
            "https://host.example/cam/a.png",
            "https://host./cam/a.png",
            "https://other/cam/a.png",
            "https://host/CAM/a.png",
            "https://host/a.png",
            "ftp://host/cam/a.png",
            "data:image/png;base64,AAAA",
        ] {
            assert_eq!(reason(uri), Err("claim_not_allowed"), "{uri}");
        }
        for uri in [
            "https://host@other/cam/a.png",
            "https://host\\@other/cam/a.png",
            "https://host/cam/..%2fa.png",
            "https://host/cam/..%5ca.png",
            "https://host/cam/",
            "/data/images/a.png",
            "file:///data/images/a.png\nfile:///data/images/b.png",
        ] {
            assert_eq!(reason(uri), Err("claim_malformed"), "{uri}");
        }
    }

    #[test]
    fn without_prefixes_nothing_is_allowed() {
        let refused = place(b"file:///data/images/a.png", [].iter()).unwrap_err();
        assert_eq!(refused.reason(), "claim_not_allowed");
    }

    /// Texts made of what URIs are bent with.
    fn bent_uri() -> impl Strategy<Value = String> {
        let start = prop::sample::select(vec![
            "file:///data/images/",
            "file:///data/",
            "file:",
            "https://host/cam/",
            "https://host/",
            "https://",
            "http://host:8080/",
            "HTTPS://HOST/",
        ]);
        let piece = prop::sample::select(vec![
            "..", ".", "/", "//", "\\", "%2e", "%2E", "%2f", "%5c", "%252e", "%25", "%00", "%0a",
            "@", ":", "?", "#", ";", "host", "other", "cam", "data", "images", "c\u{e9}", "a.png",
            "\u{ff0e}", "\u{2024}", "\u{2215}", "|", "^", "[", "]", "`", "{", "\"", "*", "~", "\t",
        ]);
        (start, prop::collection::vec(piece, 0..12))
            .prop_map(|(start, pieces)| start.to_owned() + &pieces.concat())
    }

    /// The URL that a store asks for: the site, and the name's segments encoded anew.
    fn requested(prefix: &Prefix, path: &Path) -> Url {
        let mut url = Url::parse(&prefix.site).unwrap();
        url.path_segments_mut().unwrap().extend(path.parts());
        url
    }

    /// The law: what is accepted resolves below its prefix, whoever resolves it once more.
    #[test]
    fn no_accepted_uri_resolves_outside_its_prefix() {
        let prefixes = prefixes();
        let accepted = std::cell::Cell::new(0);
        let config = ProptestConfig { cases: 20_000, ..ProptestConfig::default() };
        let law = |text: String| {
            let Ok(place) = place(text.as_bytes(), prefixes.iter()) else { return Ok(()) };
            accepted.set(accepted.get() + 1);
            let prefix = &prefixes[place.prefix];
            // By name: the prefix's segments come first, none is empty, dots or holds a separator.
            let folder: Vec<_> = prefix.folder.as_ref().split_terminator('/').collect();
            let segments: Vec<_> = place.path.as_ref().split('/').collect();
            prop_assert!(segments.len() > folder.len() && segments.starts_with(&folder));
            for segment in segments {
                prop_assert!(!["", ".", ".."].contains(&segment), "{segment:?}");
                prop_assert!(!segment.contains(['\\', '\0', '\n']), "{segment:?}");
            }
            // By request: read again as a server or a proxy does, it is at the same site and below
            // the same folder.
            let url = requested(prefix, &place.path);
            let again = Url::parse(url.as_str()).unwrap();
            prop_assert_eq!(&again, &url);
            let folder = requested(prefix, &prefix.folder);
            let folder = folder.as_str().trim_end_matches('/').to_owned() + "/";
            prop_assert!(again.as_str().starts_with(&folder), "{} is not below {}", again, folder);
            if prefix.kind == Kind::Http {
                prop_assert!(again.as_str().parse::<axum::http::Uri>().is_ok(), "{}", again);
            }
            Ok(())
        };
        TestRunner::new(config).run(&bent_uri(), law).unwrap();
        assert!(accepted.get() > 200, "{} of 20,000 were accepted", accepted.get());
    }
}
