//! What a JPEG says before its scan (ITU-T T.81, annex B), as far as plain files go: each reader
//! answers `None` to what is not plain or not sound.

use super::huffman::Table;
use super::next_marker;

/// What the segments before the scan say.
#[derive(Default)]
pub(super) struct Header {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) frame: Vec<FrameComponent>,
    /// Factors in zigzag order.
    pub(super) quantisation: [Option<[i32; 64]>; 4],
    pub(super) dc_tables: [Option<Table>; 4],
    pub(super) ac_tables: [Option<Table>; 4],
    /// Units of the scan between two restart markers; 0 is none.
    pub(super) restart_interval: usize,
    /// Whether a segment says that three components are YCbCr.
    is_ycbcr: bool,
}

/// A component as the frame header describes it, and its tables as the scan's does.
pub(super) struct FrameComponent {
    pub(super) id: u8,
    pub(super) across: usize,
    pub(super) down: usize,
    pub(super) quantisation: usize,
    pub(super) tables: (usize, usize),
}

impl Header {
    /// Reads up to the scan's data, which is the rest.
    pub(super) fn read(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let mut header = Self::default();
        let mut rest = bytes.strip_prefix(&[0xff, 0xd8])?;
        loop {
            let marker;
            (marker, rest) = next_marker(rest)?;
            let length = usize::from(u16::from_be_bytes(*rest.first_chunk()?));
            let (segment, after) = rest.split_at_checked(length)?;
            let segment = segment.get(2..)?;
            rest = after;
            match marker {
                0xc0 | 0xc1 => header.read_frame(segment)?,
                0xc4 => header.read_codes(segment)?,
                0xda => {
                    header.read_scan(segment)?;
                    return Some((header, rest));
                }
                0xdb => header.read_quantisation(segment)?,
                0xdd => {
                    header.restart_interval = u16::from_be_bytes(*segment.first_chunk()?).into()
                }
                0xe0 => header.is_ycbcr |= segment.starts_with(b"JFIF\0"),
                // Adobe's segment: the colours are YCbCr if its last byte is 1.
                0xee if segment.starts_with(b"Adobe") => {
                    header.is_ycbcr = *segment.get(11)? == 1;
                    header.is_ycbcr.then_some(())?;
                }
                0xe1..=0xef | 0xfe => {}
                _ => return None,
            }
        }
    }

    fn read_frame(&mut self, segment: &[u8]) -> Option<()> {
        let (&[8, h1, h0, w1, w0, n], rest) = segment.split_first_chunk()? else { return None };
        self.width = u16::from_be_bytes([w1, w0]).into();
        self.height = u16::from_be_bytes([h1, h0]).into();
        let is_sound = self.frame.is_empty() && self.width > 0 && self.height > 0;
        let component = |&[id, sampling, quantisation]: &[u8; 3]| FrameComponent {
            id,
            across: usize::from(sampling >> 4),
            down: usize::from(sampling & 15),
            quantisation: quantisation.into(),
            tables: (0, 0),
        };
        let (components, []) = rest.as_chunks::<3>() else { return None };
        self.frame = components.iter().map(component).collect();
        (is_sound && self.frame.len() == usize::from(n)).then_some(())
    }

    fn read_codes(&mut self, mut segment: &[u8]) -> Option<()> {
        while let Some((&class, rest)) = segment.split_first() {
            let (counts, rest) = rest.split_first_chunk::<16>()?;
            let n_values = counts.iter().map(|&count| usize::from(count)).sum();
            let (values, rest) = rest.split_at_checked(n_values)?;
            let tables = match class >> 4 {
                // A difference of DC has no zeros before it.
                0 if values.iter().all(|&value| value < 16) => &mut self.dc_tables,
                1 => &mut self.ac_tables,
                _ => return None,
            };
            *tables.get_mut(usize::from(class & 15))? = Some(Table::new(counts, values)?);
            segment = rest;
        }
        Some(())
    }

    fn read_quantisation(&mut self, mut segment: &[u8]) -> Option<()> {
        while let Some((&place, rest)) = segment.split_first() {
            let (factors, rest) = rest.split_first_chunk::<64>()?;
            // Those above 3 have 16 bits, which no plain file needs.
            *self.quantisation.get_mut(usize::from(place))? = Some(factors.map(i32::from));
            segment = rest;
        }
        Some(())
    }

    /// The one scan: every component in the frame's order, whole blocks.
    fn read_scan(&mut self, segment: &[u8]) -> Option<()> {
        let (&n, rest) = segment.split_first()?;
        let (components, rest) = rest.split_at_checked(2 * usize::from(n))?;
        // All of the spectrum, with all of the bits.
        let is_plain = usize::from(n) == self.frame.len() && rest == [0, 63, 0];
        let (components, _) = components.as_chunks::<2>();
        for (component, &[id, tables]) in self.frame.iter_mut().zip(components) {
            component.tables = (usize::from(tables >> 4), usize::from(tables & 15));
            (component.id == id).then_some(())?;
        }
        is_plain.then_some(())
    }

    /// Whether the components are grey, or YCbCr of a sampling that is plain.
    pub(super) fn is_plain(&self) -> bool {
        let samplings: Vec<_> = self.frame.iter().map(|of| (of.across, of.down)).collect();
        match samplings[..] {
            // Without others its blocks stand in rows whatever its sampling is.
            [_] => true,
            [(1, 1) | (2, 1) | (2, 2), (1, 1), (1, 1)] => {
                self.is_ycbcr || self.frame.iter().map(|of| of.id).eq(1..=3)
            }
            _ => false,
        }
    }
}
