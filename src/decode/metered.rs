//! Bounds what a decoder reads. TIFF's reads one stretch of a file for each strip that is said to lie there,
//! and a compressed stretch may be long and unpack to nothing.

use std::io::{self, BufRead, Cursor, Read, Seek, SeekFrom};

/// A file of which only so many bytes may be read; what is read again counts again.
pub(super) struct Metered<'a> {
    file: Cursor<&'a [u8]>,
    left_bytes: u64,
}

/// All that may be read has been.
#[derive(Debug, thiserror::Error)]
#[error("the file refers to its {file_bytes} bytes too often")]
struct Exhausted {
    file_bytes: usize,
}

impl<'a> Metered<'a> {
    /// Reading fails once `max_bytes` have been read.
    pub(super) fn new(file: &'a [u8], max_bytes: u64) -> Self {
        Self { file: Cursor::new(file), left_bytes: max_bytes }
    }

    fn check(&self) -> io::Result<()> {
        if self.left_bytes == 0 {
            let file_bytes = self.file.get_ref().len();
            return Err(io::Error::other(Exhausted { file_bytes }));
        }
        Ok(())
    }

    fn count(&mut self, bytes: usize) {
        self.left_bytes = self.left_bytes.saturating_sub(bytes as u64);
    }
}

impl Read for Metered<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        let bytes = self.file.read(buffer)?;
        self.count(bytes);
        Ok(bytes)
    }

    /// In one piece, as some decoders ask for each pixel.
    fn read_exact(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        self.check()?;
        self.file.read_exact(buffer)?;
        self.count(buffer.len());
        Ok(())
    }
}

impl BufRead for Metered<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.check()?;
        self.file.fill_buf()
    }

    fn consume(&mut self, bytes: usize) {
        self.count(bytes);
        self.file.consume(bytes);
    }
}

impl Seek for Metered<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{Config, decode, fixtures};
    use flate2::{Compression, write::ZlibEncoder};
    use std::error::Error;
    use std::io::Write;

    #[test]
    fn what_is_read_again_counts_again_however_it_is_read() {
        let mut file = Metered::new(b"abcdef", 15);
        let mut read = [0; 6];
        file.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"abcdef");
        file.seek(SeekFrom::Start(0)).unwrap();
        assert_eq!(file.fill_buf().unwrap(), b"abcdef");
        file.consume(6);
        file.seek(SeekFrom::Start(2)).unwrap();
        assert_eq!(file.read(&mut read).unwrap(), 4);
        // Sixteen were read: the bound may be passed by what one call reads.
        file.seek(SeekFrom::Start(0)).unwrap();
        assert!(file.read(&mut read).is_err());
        assert!(file.fill_buf().is_err());
    }

    /// Each row of the image is a strip of its own, and all of them are one: its decoder reads 32 KiB for each.
    #[test]
    fn a_stretch_of_a_file_is_not_read_for_ever() {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&[77; 8]).unwrap();
        let mut body = encoder.finish().unwrap();
        body.resize(body.len() + 32 * 1024, 0);
        let image = |height_px: u16| {
            let n_strips = usize::from(height_px);
            let (offsets, lengths) = (vec![8_u64; n_strips], vec![body.len() as u64; n_strips]);
            let entries: [(u16, u16, &[u64]); 9] = [
                (256, 3, &[8]),
                (257, 3, &[u64::from(height_px)]),
                (258, 3, &[8]),
                (259, 3, &[8]),
                (262, 3, &[1]),
                (273, 3, &offsets),
                (277, 3, &[1]),
                (278, 3, &[1]),
                (279, 4, &lengths),
            ];
            fixtures::tiff_of(&body, &entries)
        };
        // 68 MB may be read.
        let config = Config { max_pixels: 20_000, ..Config::default() };
        assert!(decode(&image(1000), None, &config).is_ok());
        let refusal = decode(&image(2200), None, &config).unwrap_err();
        assert_eq!(refusal.reason(), "damaged");
        let source = refusal.source().unwrap().to_string();
        assert!(source.contains("bytes too often"), "{source}");
    }
}
