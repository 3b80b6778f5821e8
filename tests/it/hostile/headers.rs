//! The headers of a message, by way of librdkafka's own list of them: each line of the input up to an empty one
//! is a name and, after a colon, a value; the message's bytes follow. Law: all whose name is text are copied as
//! they came; the first of a name counts, in any case; and a content type that denies an image is believed.

use bytes::Bytes;
use rdkafka::message::{Header, OwnedHeaders};
use selfstream::claim::{Arrival, Image};
use selfstream::decode::{Config, Decoded};
use selfstream::source::kafka::headers::copied;
use selfstream::source::{Origin, Record};

/// Names that something looks for.
const LOOKED_FOR: [&str; 3] = ["content-type", "label", "Content-Type"];

/// Holds `input` to the law; says whether the message is an image.
pub(crate) fn check(input: &[u8]) -> bool {
    let (pairs, bytes) = parse(input);
    let mut list = OwnedHeaders::new();
    for (name, value) in &pairs {
        // SAFETY: `insert` hands the bytes to librdkafka, which copies them and asks no more of them.
        let key = unsafe { std::str::from_utf8_unchecked(name) };
        list = list.insert(Header { key, value: *value });
    }
    let headers = copied(list.as_borrowed());
    let expected: Vec<(String, Option<Bytes>)> = pairs.iter().filter_map(as_text).collect();
    assert_eq!(headers, expected);

    let record = Record {
        origin: Origin { topic: "images".into(), partition: 0, offset: 0 },
        generation: 1,
        is_skipped: false,
        bytes: Bytes::copy_from_slice(bytes),
        omitted_bytes: 0,
        timestamp_ms: None,
        key: None,
        headers,
    };
    for name in LOOKED_FOR {
        assert_eq!(record.header(name), first(&expected, name), "{name}");
    }
    let denies = first(&expected, "content-type").is_some_and(denies_image);
    let config = Config { max_pixels: 1 << 20, ..Config::default() };
    let is_empty = record.bytes.is_empty();
    let outcome = Decoded::new(Arrival { record, image: Image::Inline }, &config).outcome;
    let reason = outcome.as_ref().err().map(|refusal| refusal.reason());
    if is_empty {
        assert_eq!(reason, Some("empty"));
    } else {
        assert_eq!(reason == Some("content_type"), denies);
    }
    outcome.is_ok()
}

type Pair<'a> = (&'a [u8], Option<&'a [u8]>);

fn parse(mut input: &[u8]) -> (Vec<Pair<'_>>, &[u8]) {
    let mut pairs = vec![];
    while !input.is_empty() {
        let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
        let (line, rest) = input.split_at(end);
        input = rest.get(1..).unwrap_or_default();
        if line.is_empty() {
            break;
        }
        pairs.push(match line.iter().position(|byte| *byte == b':') {
            Some(colon) => (&line[..colon], Some(&line[colon + 1..])),
            None => (line, None),
        });
    }
    (pairs, input)
}

/// A header as librdkafka gives it: its name ends before the first zero. `None` where that is no text.
fn as_text((name, value): &Pair<'_>) -> Option<(String, Option<Bytes>)> {
    let name = name.split(|byte| *byte == 0).next()?;
    let name = String::from_utf8(name.to_vec()).ok()?;
    Some((name, value.map(Bytes::copy_from_slice)))
}

fn first<'a>(headers: &'a [(String, Option<Bytes>)], name: &str) -> Option<&'a str> {
    let (_, value) = headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
    std::str::from_utf8(value.as_ref()?).ok()
}

/// RFC 9110, section 8.3.1: a type and a subtype, then parameters; case and space around carry no meaning.
fn denies_image(content_type: &str) -> bool {
    let end = content_type.find(';').unwrap_or(content_type.len());
    let essence = content_type[..end].trim().to_ascii_lowercase();
    !["", "application/octet-stream"].contains(&&*essence) && !essence.starts_with("image/")
}
