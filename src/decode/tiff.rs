//! A check of TIFF's first directory before the decoder sees it.
//!
//! Compressed strips end without an error where the file ends, in some of the compressions: so
//! every strip or tile must lie within the file. JPEG inside TIFF is not supported, since the
//! decoder reads it leniently (see `jpeg`) and trusts the size that each strip claims for itself.
//!
//! The decoder unpacks whole rows of a strip or tile, whatever pads them and however many samples
//! the image does not show. So what all of them unpack to is bounded here, and rows count as memory.

use super::{Config, Refusal, limits};
use image::ImageFormat;

/// What it costs to begin a strip or tile, in bytes that are unpacked in the same time. A guess.
const PART_BYTES: u64 = 4096;

/// What is wrong with a file's first directory.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Flaw {
    #[error("the file ends within its directory")]
    Directory,
    #[error("tag {tag} is of type {kind}, allowed are 1, 3, 4 and 16: BYTE, SHORT, LONG and LONG8")]
    Kind { tag: u16, kind: u64 },
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

/// Checks the compression, that all of the image lies within the file, and that it unpacks to no
/// more than the limits allow for. Returns how many bytes the decoder may take for a row beside
/// the image.
pub(super) fn check(bytes: &[u8], config: &Config) -> Result<u64, Refusal> {
    let damaged = |flaw: Flaw| Refusal::damaged(ImageFormat::Tiff, flaw);
    let directory = Directory::first(bytes).ok_or(Flaw::Directory).map_err(damaged)?;
    // TIFF 6.0: 259 Compression; 273 and 279 strips, 324 and 325 tiles: offsets and byte counts.
    let compression = directory.number(259, 1).map_err(damaged)?;
    if matches!(compression, 6 | 7) {
        return Err(Refusal::unsupported(ImageFormat::Tiff, Jpeg(compression)));
    }
    let layout = Layout::of(&directory).map_err(damaged)?;
    layout.check(config)?;
    for (offsets, lengths) in [(273, 279), (324, 325)] {
        let offsets: Vec<u64> = directory.field(offsets).map_err(damaged)?.numbers().collect();
        let lengths: Vec<u64> = directory.field(lengths).map_err(damaged)?.numbers().collect();
        check_strips(&offsets, &lengths, bytes.len()).map_err(damaged)?;
    }
    Ok(layout.row_bytes())
}

fn check_strips(offsets: &[u64], lengths: &[u64], file_bytes: usize) -> Result<(), Flaw> {
    // A single uncompressed strip may leave its length out; the decoder then reads what it needs.
    if !lengths.is_empty() && offsets.len() != lengths.len() {
        return Err(Flaw::Unpaired { offsets: offsets.len(), lengths: lengths.len() });
    }
    for (index, (&offset, &claimed_bytes)) in offsets.iter().zip(lengths).enumerate() {
        if offset.saturating_add(claimed_bytes) > file_bytes as u64 {
            return Err(Flaw::Strip { index, offset, claimed_bytes, file_bytes });
        }
    }
    Ok(())
}

/// How an image is dealt to strips or tiles; zero is what the directory does not say.
struct Layout {
    width_px: u64,
    height_px: u64,
    /// Of all samples of a pixel.
    pixel_bits: u64,
    /// Of a strip or tile, what pads it included.
    part_width_px: u64,
    n_parts: u64,
}

impl Layout {
    fn of(directory: &Directory<'_>) -> Result<Self, Flaw> {
        // 256 and 257 the image's sides; 258 BitsPerSample, which the decoder wants to be the same for
        // all, 277 SamplesPerPixel; 322 TileWidth. Rows below the image are not unpacked.
        let width_px = directory.number(256, 0)?;
        let bits = directory.number(258, 1)?;
        let samples = directory.number(277, 1)?;
        let is_tiled = directory.field(324)?.len() > 0;
        let mut n_parts: u64 = 0;
        for tag in [273, 279, 324, 325] {
            n_parts = n_parts.max(directory.field(tag)?.len() as u64);
        }
        Ok(Self {
            width_px,
            height_px: directory.number(257, 0)?,
            pixel_bits: bits.saturating_mul(samples),
            part_width_px: if is_tiled { directory.number(322, 0)? } else { width_px },
            n_parts,
        })
    }

    /// Checks the image's size and what its strips or tiles unpack to.
    fn check(&self, config: &Config) -> Result<(), Refusal> {
        let [width_px, height_px] =
            [self.width_px, self.height_px].map(|px| u32::try_from(px).unwrap_or(u32::MAX));
        // To the decoder an image of no pixels is damaged: only the upper limit holds here.
        let largest = Config { min_side_px: 0, ..config.clone() };
        limits::check_size(width_px, height_px, &largest)?;
        let max_alloc_bytes = limits::max_alloc_bytes(config);
        if self.unpacked_bytes() > max_alloc_bytes {
            return Err(Refusal::TooMuchMemory { format: ImageFormat::Tiff, max_alloc_bytes });
        }
        Ok(())
    }

    /// Length of a row of a strip or tile.
    fn row_bytes(&self) -> u64 {
        self.part_width_px.saturating_mul(self.pixel_bits).div_ceil(8)
    }

    /// Length of all rows of all strips or tiles, and what it costs to begin them.
    fn unpacked_bytes(&self) -> u64 {
        let n_across = self.width_px.div_ceil(self.part_width_px.max(1));
        let n_rows = n_across.saturating_mul(self.height_px);
        let row_bytes = n_rows.saturating_mul(self.row_bytes());
        row_bytes.saturating_add(self.n_parts.saturating_mul(PART_BYTES))
    }
}

/// An image file directory: a count, then entries of tag, type, count and value or offset.
struct Directory<'a> {
    file: File<'a>,
    entries: &'a [[u8; 12]],
}

impl<'a> Directory<'a> {
    fn first(bytes: &'a [u8]) -> Option<Self> {
        let file = File { bytes, is_little_endian: bytes.starts_with(b"II") };
        let start = usize::try_from(file.number_at(4, 4)?).ok()?;
        let n_entries = usize::try_from(file.number_at(start, 2)?).ok()?;
        let entries_start = start.checked_add(2)?;
        let entries_end = entries_start.checked_add(n_entries * 12)?;
        let (entries, _) = bytes.get(entries_start..entries_end)?.as_chunks();
        Some(Self { file, entries })
    }

    /// The first number of `tag`, or `default` if there is none.
    fn number(&self, tag: u16, default: u64) -> Result<u64, Flaw> {
        Ok(self.field(tag)?.numbers().next().unwrap_or(default))
    }

    /// What `tag` holds; nothing if it is absent.
    fn field(&self, tag: u16) -> Result<Field<'a>, Flaw> {
        let file = self.file;
        // Of several entries the decoder takes the last.
        let mut latest_first = self.entries.iter().rev();
        let Some(entry) = latest_first.find(|entry| file.number(&entry[..2]) == u64::from(tag))
        else {
            return Ok(Field { file, number_bytes: 1, held: &[] });
        };
        // The decoder takes some other types for numbers as well, and passes over those that it does
        // not know.
        let number_bytes = match file.number(&entry[2..4]) {
            1 => 1,
            3 => 2,
            4 => 4,
            16 => 8,
            kind => return Err(Flaw::Kind { tag, kind }),
        };
        let count = usize::try_from(file.number(&entry[4..8])).ok();
        let held = count
            .and_then(|count| count.checked_mul(number_bytes))
            .and_then(|length| file.held(entry, length));
        Ok(Field { file, number_bytes, held: held.ok_or(Flaw::Directory)? })
    }
}

/// Unsigned numbers of `number_bytes` each.
struct Field<'a> {
    file: File<'a>,
    number_bytes: usize,
    held: &'a [u8],
}

impl Field<'_> {
    fn len(&self) -> usize {
        self.held.len() / self.number_bytes
    }

    fn numbers(&self) -> impl Iterator<Item = u64> {
        let file = self.file;
        self.held.chunks_exact(self.number_bytes).map(move |digits| file.number(digits))
    }
}

#[derive(Clone, Copy)]
struct File<'a> {
    bytes: &'a [u8],
    is_little_endian: bool,
}

impl<'a> File<'a> {
    /// The number that is written in `digits`, eight bytes at most.
    fn number(self, digits: &[u8]) -> u64 {
        let join = |number: u64, &digit: &u8| (number << 8) | u64::from(digit);
        if self.is_little_endian {
            digits.iter().rev().fold(0, join)
        } else {
            digits.iter().fold(0, join)
        }
    }

    fn number_at(self, start: usize, number_bytes: usize) -> Option<u64> {
        let end = start.checked_add(number_bytes)?;
        self.bytes.get(start..end).map(|digits| self.number(digits))
    }

    /// The `length` bytes of `entry`: in itself if there is room, else where it says.
    fn held(self, entry: &'a [u8; 12], length: usize) -> Option<&'a [u8]> {
        if length <= 4 {
            return Some(&entry[8..8 + length]);
        }
        let start = usize::try_from(self.number(&entry[8..])).ok()?;
        self.bytes.get(start..start.checked_add(length)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{decode, fixtures};
    use super::*;
    use std::error::Error;

    type Entry<'a> = (u16, u16, &'a [u64]);

    /// 16 by 16 pixels of 8 bits, uncompressed.
    const GREY: [Entry<'static>; 6] = [
        (256, 3, &[16]),
        (257, 3, &[16]),
        (258, 3, &[8]),
        (259, 3, &[1]),
        (262, 3, &[1]),
        (277, 3, &[1]),
    ];
    const STRIP: [Entry<'static>; 3] = [(273, 4, &[8]), (278, 3, &[16]), (279, 4, &[256])];
    const TILE: [Entry<'static>; 4] =
        [(322, 3, &[16]), (323, 3, &[16]), (324, 4, &[8]), (325, 4, &[256])];

    /// A file with 256 bytes at byte 8, then a directory of all `entries`.
    fn file(entries: &[&[Entry<'_>]]) -> Vec<u8> {
        fixtures::tiff_of(&[77; 256], &entries.concat())
    }

    fn check_by_default(bytes: &[u8]) -> Result<u64, Refusal> {
        check(bytes, &Config::default())
    }

    #[test]
    fn strips_must_lie_within_the_file_in_either_byte_order() {
        for is_little_endian in [true, false] {
            let whole = fixtures::multi_strip_tiff(&fixtures::picture(), is_little_endian);
            assert!(check_by_default(&whole).is_ok());
            // The strips come last in this file, so every cut takes something away.
            for length in 0..whole.len() {
                let refusal = check_by_default(&whole[..length]).unwrap_err();
                assert_eq!(refusal.reason(), "damaged", "{length}");
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
        let refusal = check_by_default(&bytes).unwrap_err();
        assert_eq!(refusal.reason(), "unsupported");
    }

    /// The decoder takes a number of any of these types, and of entries of one tag the last.
    #[test]
    fn what_counts_is_what_the_decoder_reads() {
        for kind in [1, 3, 4, 16] {
            for (tag, number) in [(259, 1), (273, 8)] {
                let bytes = file(&[&GREY, &STRIP, &[(tag, kind, &[number])]]);
                let pixels = decode(&bytes, None, &Config::default()).unwrap();
                assert!(pixels.rgb.iter().all(|&sample| sample == 77), "{tag} {kind}");
            }
            let jpeg = file(&[&GREY, &STRIP, &[(259, kind, &[7])]]);
            assert_eq!(check_by_default(&jpeg).unwrap_err().reason(), "unsupported", "{kind}");
            // No more than a byte holds; the strip's 256 bytes end beyond the file all the same.
            let beyond = file(&[&GREY, &STRIP, &[(273, kind, &[255])]]);
            let refusal = check_by_default(&beyond).unwrap_err();
            assert!(refusal.source().unwrap().to_string().contains("strip 0"), "{refusal:?}");
        }
        // It takes an UNDEFINED for a number as well; a LONG8 can be as large as to overflow a sum.
        let undefined = file(&[&GREY, &STRIP, &[(259, 7, &[7])]]);
        let huge = file(&[&GREY, &STRIP, &[(279, 16, &[u64::MAX])]]);
        for (bytes, flaw) in [(undefined, "tag 259 is of type 7"), (huge, "strip 0")] {
            let refusal = check_by_default(&bytes).unwrap_err();
            assert_eq!(refusal.reason(), "damaged");
            assert!(refusal.source().unwrap().to_string().contains(flaw), "{refusal:?}");
        }
    }

    #[test]
    fn what_strips_and_tiles_unpack_to_is_bounded() {
        let tile = file(&[&GREY, &TILE]);
        assert!(decode(&tile, None, &Config::default()).is_ok());
        let is_too_much = |bytes: &[u8], config: &Config| match check(bytes, config) {
            Ok(_) => false,
            Err(refusal) => {
                assert_eq!(refusal.reason(), "too_much_memory");
                true
            }
        };
        // A row of 12 GB, of which 16 pixels are the image's; and one of 65,535 samples a pixel.
        let floats: [Entry<'_>; 3] =
            [(258, 3, &[32; 3]), (277, 3, &[3]), (322, 4, &[1_000_000_000])];
        let samples: [Entry<'_>; 3] = [(256, 4, &[50_000]), (258, 3, &[16]), (277, 3, &[65_535])];
        for bytes in [file(&[&GREY, &TILE, &floats]), file(&[&GREY, &STRIP, &samples])] {
            assert!(is_too_much(&bytes, &Config::default()));
        }
        // 17 MB may be unpacked: tiles of small rows, but of many; and strips of little, but many.
        let config = Config { max_pixels: 16_000, ..Config::default() };
        for (width_px, is_beyond) in [(256, false), (100_000, true)] {
            let high: [Entry<'_>; 2] = [(257, 3, &[1000]), (322, 4, &[width_px])];
            assert_eq!(is_too_much(&file(&[&GREY, &TILE, &high]), &config), is_beyond);
        }
        for (n_strips, is_beyond) in [(500_usize, false), (5000, true)] {
            let (offsets, lengths) = (vec![8_u64; n_strips], vec![2_u64; n_strips]);
            let strips: [Entry<'_>; 2] = [(273, 3, &offsets), (279, 3, &lengths)];
            assert_eq!(is_too_much(&file(&[&GREY, &strips]), &config), is_beyond);
        }
    }

    /// A million pixels of four floats are held twice, in 32 MB of the 32.8 that may be taken, and a
    /// row of eight samples a pixel takes 4 MB beside them.
    #[test]
    fn a_row_counts_as_memory() {
        let config = Config { max_pixels: 1_000_000, ..Config::default() };
        for (width_px, reason) in [(60_000, "damaged"), (125_000, "too_much_memory")] {
            let floats: [Entry<'_>; 8] = [
                (256, 4, &[width_px]),
                (257, 3, &[8]),
                (258, 3, &[32]),
                (259, 3, &[8]),
                (262, 3, &[2]),
                (277, 3, &[8]),
                (338, 3, &[0; 4]),
                (339, 3, &[3]),
            ];
            let bytes = file(&[&GREY, &STRIP, &floats]);
            assert_eq!(check(&bytes, &config).unwrap(), width_px * 32);
            assert_eq!(decode(&bytes, None, &config).unwrap_err().reason(), reason);
        }
    }
}
