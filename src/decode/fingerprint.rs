//! A fingerprint of what an image shows, in 64 bits: near-duplicates differ in few of them.
//!
//! It is the difference hash (dHash: Krawetz, "Kind of Like That", 2013): the image as 9 x 8 cells of
//! grey, and for each cell but the last of a row whether the next one is brighter.

use super::Pixels;

/// Cells of a row: one more than its bits.
const COLUMNS: usize = 9;
const ROWS: usize = 8;

/// The fingerprint of `pixels`; the first bits are the first row's.
pub fn fingerprint(pixels: &Pixels) -> u64 {
    let cells = cells(pixels);
    let brighter = cells.iter().flat_map(|row| row.windows(2).map(|pair| pair[1] > pair[0]));
    brighter.fold(0, |bits, is_brighter| bits << 1 | u64::from(is_brighter))
}

/// In how many bits two fingerprints differ.
pub fn difference(a: u64, b: u64) -> u32 {
    (a ^ b).count_ones()
}

/// The mean of red, green and blue over each cell. Cells of an image with fewer pixels than cells
/// share some.
fn cells(pixels: &Pixels) -> [[f32; COLUMNS]; ROWS] {
    let (width, height) = (pixels.width_px as usize, pixels.height_px as usize);
    let part = |side: usize, index: usize, parts: usize| {
        let begin = side * index / parts;
        begin..(side * (index + 1) / parts).max(begin + 1)
    };
    let mut cells = [[0.0; COLUMNS]; ROWS];
    for (row, cells) in cells.iter_mut().enumerate() {
        for (column, cell) in cells.iter_mut().enumerate() {
            let columns = part(width, column, COLUMNS);
            let (mut sum, mut n) = (0, 0);
            for y in part(height, row, ROWS) {
                let line = &pixels.rgb[3 * (y * width + columns.start)..][..3 * columns.len()];
                sum += line.iter().map(|byte| u64::from(*byte)).sum::<u64>();
                n += line.len();
            }
            *cell = sum as f32 / n as f32;
        }
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(width: usize, height: usize, grey: impl Fn(f32, f32) -> f32) -> Pixels {
        let at = |i: usize| {
            let (x, y) = (i % width, i / width);
            grey((x as f32 + 0.5) / width as f32, (y as f32 + 0.5) / height as f32) as u8
        };
        let rgb = (0..width * height).flat_map(|i| [at(i); 3]).collect();
        Pixels { width_px: width as u32, height_px: height as u32, rgb }
    }

    #[test]
    fn ramps_have_all_bits_or_none() {
        for (width, height) in [(90, 80), (33, 17), (9, 8), (500, 8)] {
            assert_eq!(fingerprint(&image(width, height, |x, _| 250.0 * x)), u64::MAX);
            assert_eq!(fingerprint(&image(width, height, |x, _| 250.0 - 250.0 * x)), 0);
            assert_eq!(fingerprint(&image(width, height, |_, y| 250.0 * y)), 0);
            let upper = image(width, height, |x, y| if y < 0.5 { 250.0 * x } else { 0.0 });
            assert_eq!(fingerprint(&upper), u64::MAX << 32);
        }
        // Fewer pixels than cells.
        assert_eq!(fingerprint(&image(1, 1, |_, _| 9.0)), 0);
    }

    /// A scene at another size and brightness, or moved by little, differs in few bits; another
    /// scene in about half.
    #[test]
    fn near_duplicates_are_near_and_others_are_not() {
        let scene = |seed: f32, shift: f32, gain: f32| {
            move |x: f32, y: f32| {
                let wave = |a: f32, b: f32| ((x + shift) * a * seed + y * b * seed).sin();
                gain * (120.0 + 50.0 * wave(7.3, 3.1) + 40.0 * wave(-4.7, 8.9))
            }
        };
        let of = |width: usize, seed: f32, shift: f32, gain: f32| {
            fingerprint(&image(width, 60, scene(seed, shift, gain)))
        };
        let frame = of(80, 1.0, 0.0, 1.0);
        for other in [of(200, 1.0, 0.0, 1.0), of(80, 1.0, 0.0, 0.6), of(80, 1.0, 0.01, 1.0)] {
            assert!(difference(frame, other) <= 6, "{}", difference(frame, other));
        }
        assert!(difference(frame, of(80, 1.9, 0.4, 1.0)) > 16);
        assert_eq!(difference(0b1011, 0b0001), 2);
    }
}
