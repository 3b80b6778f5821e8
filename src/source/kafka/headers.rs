//! A message's headers, copied out of librdkafka.

use bytes::Bytes;
use rdkafka::message::Headers;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tracing::warn;

/// Copies `headers`, in their order. One whose name is not UTF-8 is left out and logged.
pub fn copied(headers: &impl Headers) -> Vec<(String, Option<Bytes>)> {
    (0..headers.count()).filter_map(|index| copied_at(headers, index)).collect()
}

fn copied_at(headers: &impl Headers, index: usize) -> Option<(String, Option<Bytes>)> {
    // rdkafka unwraps the name's bytes as text. That panic would end the source, and again after each
    // restart, since the record would be the first one read.
    let header = catch_unwind(AssertUnwindSafe(|| headers.try_get(index)));
    let Ok(header) = header else {
        warn!(index, "a header whose name is not UTF-8 was left out");
        return None;
    };
    let header = header?;
    Some((header.key.to_owned(), header.value.map(Bytes::copy_from_slice)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::message::{Header, OwnedHeaders};

    #[test]
    fn headers_keep_their_order_and_a_name_that_is_no_text_costs_its_header_alone() {
        let name = [b'x', 0xff];
        // SAFETY: `insert` hands the bytes to librdkafka, which copies them and asks no more of them.
        let name = unsafe { std::str::from_utf8_unchecked(std::hint::black_box(&name[..])) };
        let headers = OwnedHeaders::new()
            .insert(Header { key: "label", value: Some("cat") })
            .insert(Header { key: name, value: Some("dog") })
            .insert(Header { key: "empty", value: Some("") })
            .insert(Header { key: "none", value: None::<&str> })
            .insert(Header { key: "label", value: Some(&b"\xff"[..]) });
        let expected: [(&str, Option<&[u8]>); 4] = [
            ("label", Some(b"cat")),
            ("empty", Some(b"")),
            ("none", None),
            ("label", Some(b"\xff")),
        ];
        let copies = copied(headers.as_borrowed());
        let copies: Vec<(&str, Option<&[u8]>)> =
            copies.iter().map(|(key, value)| (key.as_str(), value.as_deref())).collect();
        assert_eq!(copies, expected);
    }
}
