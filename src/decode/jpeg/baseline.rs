//! Baseline JPEG at full or reduced scale (ITU-T T.81).
//!
//! zune-jpeg decodes every JPEG, at full scale. This decoder takes the plain ones, which nearly all
//! are: sequential, Huffman-coded, one scan of grey or of YCbCr with chroma at full size, half
//! width, or half width and height. Reduced, a block is shown as 4, 2 or 1 pixels a side
//! ([`super::transform`]), for a part of the work; chroma that is stored smaller is reduced less.
//! At full scale its pixels are libjpeg's to the bit.
//!
//! It never says what is wrong with a file: it answers `None` to what is not plain, and to what is
//! not sound in the least thing, and leaves the file to zune-jpeg. So it can be stricter, but what
//! is refused, and why, depends on zune-jpeg alone.

use super::header::{FrameComponent, Header};
use super::huffman::{Bits, Tables, read_block};
use super::planes::{Covers, Plane, grey_to_rgb, ycbcr_to_rgb};
use super::transform::{Side, show};
use super::{Pixels, find_marker_byte};
use crate::isa::Isa;

/// How much smaller than stored an image is decoded; each side is divided, rounded up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reduction {
    None,
    Half,
    Quarter,
    Eighth,
}

impl Reduction {
    /// Least first.
    pub(super) const ALL: [Self; 4] = [Self::None, Self::Half, Self::Quarter, Self::Eighth];

    /// What a side is divided by.
    pub(super) fn divisor(self) -> u32 {
        1 << self as u32
    }
}

/// Decodes `bytes` reduced by `reduction`, if they are a plain and sound JPEG.
pub(super) fn decode(bytes: &[u8], reduction: Reduction) -> Option<Pixels> {
    let (header, scan) = Header::read(bytes)?;
    let mut components = components(&header, reduction)?;
    let entropy = Entropy::read(scan)?;
    read_scan(&header, &entropy, &mut components)?;
    let covers = components.last()?.covers;
    let planes: Vec<Plane> = components.into_iter().map(|component| component.plane).collect();
    let (width_px, height_px) = (planes[0].width as u32, planes[0].height as u32);
    let rgb = match <[Plane; 3]>::try_from(planes) {
        Ok(planes) => ycbcr_to_rgb(&planes, covers),
        Err(planes) => grey_to_rgb(planes.first()?),
    };
    Some(Pixels { width_px, height_px, rgb })
}

/// A component while it is decoded.
struct Component<'a> {
    tables: Tables<'a>,
    /// Its blocks in a unit of the scan.
    across: usize,
    down: usize,
    /// How a side of a block is shown.
    vertical: Side,
    horizontal: Side,
    previous_dc: i32,
    covers: Covers,
    plane: Plane,
}

/// The components of an image, with planes to decode to.
fn components(header: &Header, reduction: Reduction) -> Option<Vec<Component<'_>>> {
    if !header.is_plain() {
        return None;
    }
    let most = (header.frame[0].across, header.frame[0].down);
    let component = |of: &FrameComponent| {
        let is_alone = header.frame.len() == 1;
        let (across, down) = if is_alone { (1, 1) } else { (of.across, of.down) };
        let (most_across, most_down) = if is_alone { (1, 1) } else { most };
        let horizontal = side(most_across / across, reduction);
        let vertical = side(most_down / down, reduction);
        // The part of a side that is shown, and the whole blocks that it lies in.
        let shown = |length: usize, own: usize, most: usize, n: usize| {
            (length * own * n).div_ceil(8 * most)
        };
        let stored =
            |length: usize, own: usize, most: usize, n: usize| length.div_ceil(8 * most) * own * n;
        let stride = stored(header.width, across, most_across, horizontal.n());
        let plane = Plane {
            samples: vec![0; stride * stored(header.height, down, most_down, vertical.n())],
            stride,
            width: shown(header.width, across, most_across, horizontal.n()),
            height: shown(header.height, down, most_down, vertical.n()),
        };
        let covers = match (most_across / across, most_down / down) {
            _ if reduction != Reduction::None => Covers::One,
            (1, 1) => Covers::One,
            (2, 1) => Covers::TwoAcross,
            _ => Covers::TwoByTwo,
        };
        // libjpeg has no filter for so narrow a plane.
        (covers == Covers::One || plane.width > 2).then_some(())?;
        Some(Component {
            tables: Tables {
                dc: header.dc_tables.get(of.tables.0)?.as_ref()?,
                ac: header.ac_tables.get(of.tables.1)?.as_ref()?,
                quantisation: header.quantisation.get(of.quantisation)?.as_ref()?,
            },
            across,
            down,
            vertical,
            horizontal,
            previous_dc: 0,
            covers,
            plane,
        })
    };
    header.frame.iter().map(component).collect()
}

/// How a side of a block is shown of which a sample covers `covered` pixels.
fn side(covered: usize, reduction: Reduction) -> Side {
    // A reduced image has at least half as many pixels as chroma has samples.
    let is_less_reduced = covered == 2 && reduction != Reduction::None;
    Side::ALL[3 - reduction as usize + usize::from(is_less_reduced)]
}

/// Entropy-coded data without the zeros that are stuffed after bytes of 255.
struct Entropy {
    data: Vec<u8>,
    /// Where each stretch between restart markers ends.
    ends: Vec<usize>,
}

impl Entropy {
    /// Reads to the end of the image, which must be the next marker but for restarts in turn.
    fn read(mut scan: &[u8]) -> Option<Self> {
        let mut data = Vec::with_capacity(scan.len());
        let mut ends = vec![];
        loop {
            let at = find_marker_byte(scan)?;
            data.extend_from_slice(&scan[..at]);
            scan = &scan[at + 1..];
            match *scan.first()? {
                0 => data.push(0xff),
                // Fill: this may begin the marker.
                0xff => continue,
                0xd9 => break,
                restart if restart == 0xd0 + (ends.len() % 8) as u8 => ends.push(data.len()),
                _ => return None,
            }
            scan = &scan[1..];
        }
        ends.push(data.len());
        Some(Self { data, ends })
    }
}

/// Decodes every unit of the scan into the planes of `components`.
fn read_scan(header: &Header, entropy: &Entropy, components: &mut [Component<'_>]) -> Option<()> {
    let units_across =
        components[0].plane.stride / (components[0].across * components[0].horizontal.n());
    let units_down = components[0].plane.samples.len()
        / components[0].plane.stride
        / (components[0].down * components[0].vertical.n());
    let n_units = units_across * units_down;
    let interval = if header.restart_interval == 0 { n_units } else { header.restart_interval };
    (entropy.ends.len() == n_units.div_ceil(interval)).then_some(())?;

    let isa = Isa::best();
    let (mut start, mut unit) = (0, 0);
    for &end in &entropy.ends {
        let mut bits = Bits::new(&entropy.data, start);
        components.iter_mut().for_each(|component| component.previous_dc = 0);
        for unit in (unit..n_units).take(interval) {
            let place = (unit % units_across, unit / units_across);
            for component in &mut *components {
                component.read_unit(isa, &mut bits, place)?;
            }
            // Nothing is made of bits that are not there, however large the image claims to be.
            (!bits.is_beyond(end)).then_some(())?;
        }
        unit += interval;
        bits.is_at(end).then_some(())?;
        start = end;
    }
    Some(())
}

impl Component<'_> {
    /// Decodes its blocks of the unit at `column` and `row`.
    fn read_unit(
        &mut self,
        isa: Isa,
        bits: &mut Bits<'_>,
        (column, row): (usize, usize),
    ) -> Option<()> {
        for down in 0..self.down {
            let top = (row * self.down + down) * self.vertical.n() * self.plane.stride;
            for across in 0..self.across {
                let mut block = [0; 64];
                let length = read_block(bits, self.tables, &mut self.previous_dc, &mut block)?;
                let left = (column * self.across + across) * self.horizontal.n();
                let out = &mut self.plane.samples[top + left..];
                show(isa, &block, length, self.vertical, self.horizontal, out, self.plane.stride);
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::fixtures::{self, stored};
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Golden {
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        name: String,
        file: String,
        width_px: u32,
        height_px: u32,
        rgb: String,
    }

    /// Name, file and pixels of each case in `tests/golden/jpeg.json`.
    fn golden() -> Vec<(String, Vec<u8>, Pixels)> {
        let text = include_str!("../../../tests/golden/jpeg.json");
        let golden: Golden = serde_json::from_str(text).unwrap();
        let case = |case: Case| {
            let Case { name, file, width_px, height_px, rgb } = case;
            let rgb = STANDARD.decode(rgb).unwrap();
            (name, STANDARD.decode(file).unwrap(), Pixels { width_px, height_px, rgb })
        };
        golden.cases.into_iter().map(case).collect()
    }

    #[test]
    fn pixels_are_torchvisions_to_the_bit() {
        for (name, file, expected) in golden() {
            let pixels = decode(&file, Reduction::None).expect(&name);
            assert!(pixels == expected, "{name} differs");
        }
    }

    #[test]
    fn a_reduced_image_has_the_divided_size_and_the_means_of_what_its_pixels_cover() {
        for (name, file, full) in golden() {
            for reduction in Reduction::ALL {
                let reduced = decode(&file, reduction).expect(&name);
                let n = reduction.divisor();
                let size = (reduced.width_px, reduced.height_px);
                assert_eq!(size, (full.width_px.div_ceil(n), full.height_px.div_ceil(n)));
                // The mean of whole blocks is that of their frequency 0, whatever is left out; the
                // colours are noise that clamping shifts, and chroma's blocks are larger.
                let mean = |pixels: &Pixels, columns: u32, rows: u32| {
                    let row = |y: u32| (0..columns).map(move |x| y * pixels.width_px + x);
                    let greens = (0..rows).flat_map(row).map(|at| pixels.rgb[3 * at as usize + 1]);
                    greens.map(f64::from).sum::<f64>() / f64::from(columns * rows)
                };
                let (columns, rows) = (full.width_px / 16 * 16, full.height_px / 16 * 16);
                if columns > 0 && rows > 0 {
                    let distance =
                        mean(&reduced, columns / n, rows / n) - mean(&full, columns, rows);
                    assert!(distance.abs() < 6.0, "{name} by {n}: {distance}");
                }
            }
        }
    }

    #[test]
    fn waves_that_a_reduced_image_can_show_are_kept() {
        // Two periods in 64 pixels are far below what 8 pixels can show.
        let wave = |at: f32| ((at / 64.0 * 4.0 * std::f32::consts::PI).sin() * 100.0 + 128.0) as u8;
        let image = image::RgbImage::from_fn(64, 64, |x, _| image::Rgb([wave(x as f32 + 0.5); 3]));
        let file = fixtures::jpeg(image, &[]);
        for reduction in Reduction::ALL {
            let reduced = decode(&file, reduction).unwrap();
            let n = reduction.divisor() as f32;
            for (x, pixel) in reduced.rgb.chunks(3).take(reduced.width_px as usize).enumerate() {
                let exact = wave((x as f32 + 0.5) * n);
                // A pixel is a mean over what it covers: at an eighth of the size that lowers the
                // crests by a tenth.
                assert!(pixel[1].abs_diff(exact) <= 14, "{pixel:?} is not {exact} at {x} by {n}");
            }
        }
    }

    #[test]
    fn what_is_not_plain_or_not_sound_is_left_to_others() {
        for file in [
            stored!("progressive.jpg"),
            stored!("cmyk.jpg"),
            stored!("cmyk-no-adobe.jpg"),
            stored!("ycck.jpg"),
        ] {
            assert_eq!(decode(file, Reduction::None), None);
        }
        for (name, file, _) in golden() {
            for length in 0..file.len() {
                assert_eq!(decode(&file[..length], Reduction::None), None, "{name} at {length}");
            }
            // Cut anywhere in its last third, which is scan, and ended again.
            for length in file.len() * 2 / 3..file.len() - 3 {
                let ended = [&file[..length], &[0xff, 0xd9]].concat();
                assert_eq!(decode(&ended, Reduction::None), None, "{name} ended at {length}");
            }
        }
    }

    #[test]
    fn restart_markers_come_in_turn() {
        let (_, file, _) =
            golden().into_iter().find(|(name, ..)| name.contains("restart")).unwrap();
        let markers: Vec<usize> = (0..file.len() - 1)
            .filter(|&at| file[at] == 0xff && (0xd0..0xd8).contains(&file[at + 1]))
            .collect();
        assert!(markers.len() > 1);
        for at in markers {
            let mut other = file.clone();
            other[at + 1] = 0xd0 + (other[at + 1] - 0xd0 + 1) % 8;
            assert_eq!(decode(&other, Reduction::None), None);
        }
    }
}
