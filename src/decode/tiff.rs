//! A check of TIFF's first directory before the decoder sees it.
//!
//! Compressed strips end without an error where the file ends, in some of the compressions: so
//! every strip or tile must lie within the file. JPEG inside TIFF is not supported, since the
//! decoder reads it leniently (see `jpeg`) and trusts the size that each strip claims for itself.

use super::Refusal;
use image::ImageFormat;

/// What is wrong with a file's first directory.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Flaw {
    #[error("the file ends within its directory")]
    Directory,
    #[error("there are {offsets} offsets of strips for {lengths} lengths")]
    Unpaired { offsets: usize, lengths: usize },
    #[error(
        "strip {index} claims the {claimed_bytes} bytes at {offset}, the file has {file_bytes}"
    )]
    Strip { index: usize, offset: u64, claimed_bytes: u64, file_bytes: usize },
}

/// JPEG compression, of either kind.
#[derive(Debug, thiserror::Error)]
#[error("compression {0} is JPEG")]
struct Jpeg(u64);

/// Checks the compression and that all of the image lies within the file.
pub(super) fn check(bytes: &[u8]) -> Result<(), Refusal> {
    let damaged = |flaw| Refusal::damaged(ImageFormat::Tiff, flaw);
    let directory = Directory::first(bytes).ok_or(damaged(Flaw::Directory))?;
    let values = |tag| directory.values(tag).ok_or(damaged(Flaw::Directory));
    // TIFF 6.0: 259 Compression; 273 and 279 strips, 324 and 325 tiles: offsets and byte counts.
    if let Some(&compression @ (6 | 7)) = values(259)?.first() {
        return Err(Refusal::unsupported(ImageFormat::Tiff, Jpeg(compression)));
    }
    for (offsets, lengths) in [(273, 279), (324, 325)] {
        check_strips(&values(offsets)?, &values(lengths)?, bytes.len()).map_err(damaged)?;
    }
    Ok(())
}

fn check_strips(offsets: &[u64], lengths: &[u64], file_bytes: usize) -> Result<(), Flaw> {
    // A single uncompressed strip may leave its length out; the decoder then reads what it needs.
    if !lengths.is_empty() && offsets.len() != lengths.len() {
        return Err(Flaw::Unpaired { offsets: offsets.len(), lengths: lengths.len() });
    }
    for (index, (&offset, &claimed_bytes)) in offsets.iter().zip(lengths).enumerate() {
        // Both are 32-bit, so the sum cannot overflow.
        if offset + claimed_bytes > file_bytes as u64 {
            return Err(Flaw::Strip { index, offset, claimed_bytes, file_bytes });
        }
    }
    Ok(())
}

/// An image file directory: a count, then entries of tag, type, count and value or offset.
struct Directory<'a> {
    file: File<'a>,
    entries: &'a [[u8; 12]],
}

impl<'a> Directory<'a> {
    fn first(bytes: &'a [u8]) -> Option<Self> {
        let file = File { bytes, is_little_endian: bytes.starts_with(b"II") };
        let start = usize::try_from(file.u32_at(4)?).ok()?;
        let n_entries = file.u16_at(start)?;
        let entries_start = start.checked_add(2)?;
        let entries_end = entries_start.checked_add(usize::from(n_entries) * 12)?;
        let (entries, _) = bytes.get(entries_start..entries_end)?.as_chunks();
        Some(Self { file, entries })
    }

    /// The unsigned values of `tag`; none if it is absent, `None` if they leave the file.
    fn values(&self, tag: u16) -> Option<Vec<u64>> {
        let Some(entry) =
            self.entries.iter().find(|entry| self.file.u16([entry[0], entry[1]]) == tag)
        else {
            return Some(Vec::new());
        };
        let kind = self.file.u16([entry[2], entry[3]]);
        let count = self.file.u32([entry[4], entry[5], entry[6], entry[7]]) as usize;
        // Types: 3 is SHORT, 4 is LONG. The decoder judges an entry of any other.
        let width_bytes = match kind {
            3 => 2,
            4 => 4,
            _ => return Some(Vec::new()),
        };
        let length = count.checked_mul(width_bytes)?;
        let held = if length <= 4 {
            &entry[8..8 + length]
        } else {
            let start = self.file.u32([entry[8], entry[9], entry[10], entry[11]]) as usize;
            self.file.bytes.get(start..start.checked_add(length)?)?
        };
        Some(match width_bytes {
            2 => held.as_chunks().0.iter().map(|&value| self.file.u16(value).into()).collect(),
            _ => held.as_chunks().0.iter().map(|&value| self.file.u32(value).into()).collect(),
        })
    }
}

struct File<'a> {
    bytes: &'a [u8],
    is_little_endian: bool,
}

impl File<'_> {
    fn u16(&self, value: [u8; 2]) -> u16 {
        if self.is_little_endian { u16::from_le_bytes(value) } else { u16::from_be_bytes(value) }
    }

    fn u32(&self, value: [u8; 4]) -> u32 {
        if self.is_little_endian { u32::from_le_bytes(value) } else { u32::from_be_bytes(value) }
    }

    fn u16_at(&self, start: usize) -> Option<u16> {
        self.bytes.get(start..)?.first_chunk().map(|&value| self.u16(value))
    }

    fn u32_at(&self, start: usize) -> Option<u32> {
        self.bytes.get(start..)?.first_chunk().map(|&value| self.u32(value))
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::*;

    #[test]
    fn strips_must_lie_within_the_file_in_either_byte_order() {
        for is_little_endian in [true, false] {
            let whole = fixtures::multi_strip_tiff(&fixtures::picture(), is_little_endian);
            assert!(check(&whole).is_ok());
            // The strips come last in this file, so every cut takes something away.
            for length in 0..whole.len() {
                assert_eq!(check(&whole[..length]).unwrap_err().reason(), "damaged", "{length}");
            }
        }
    }

    #[test]
    fn offsets_without_as_many_lengths_are_damage() {
        assert_eq!(
            check_strips(&[8, 9], &[1], 100),
            Err(Flaw::Unpaired { offsets: 2, lengths: 1 })
        );
        assert_eq!(check_strips(&[8], &[], 100), Ok(()));
    }

    #[test]
    fn jpeg_inside_is_unsupported() {
        let mut bytes = fixtures::multi_strip_tiff(&fixtures::picture(), true);
        let entry = [3, 1, 3, 0, 1, 0, 0, 0, 1, 0]; // 259, SHORT, one value, 1: uncompressed.
        let at = bytes.windows(entry.len()).position(|window| window == entry).unwrap();
        bytes[at + 8] = 7;
        let refusal = check(&bytes).unwrap_err();
        assert_eq!(refusal.reason(), "unsupported");
    }
}
