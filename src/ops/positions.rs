//! Fixed positions of pixels for transformers: both interpreters add the same table.

/// The lowest frequency is 1 / this (Vaswani et al. 2017, arXiv 1706.03762, section 3.5).
const PERIOD_RATIO: f64 = 10_000.0;

/// `[H, W, D]`: with w_i = 10000^(-i / (D / 4)) for i < D / 4, the quarters of a pixel's channels
/// are sin(x w_i), cos(x w_i), sin(y w_i) and cos(y w_i) (MoCo v3's code, `build_2d_sincos_position_embedding`).
pub(crate) fn table([height, width]: [usize; 2], channels: usize) -> Vec<f32> {
    let quarter = channels / 4;
    let frequencies: Vec<f64> =
        (0..quarter).map(|i| PERIOD_RATIO.powf(-(i as f64) / quarter as f64)).collect();
    let waves = |place: usize, wave: fn(f64) -> f64| {
        frequencies.iter().map(move |frequency| wave(place as f64 * frequency) as f32)
    };
    let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (y, x)));
    pixels
        .flat_map(|(y, x)| {
            let across = waves(x, f64::sin).chain(waves(x, f64::cos));
            across.chain(waves(y, f64::sin)).chain(waves(y, f64::cos))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pixel_holds_the_waves_of_its_place() {
        let table = table([2, 3], 8);
        assert_eq!(table.len(), 2 * 3 * 8);
        let pixel = |y: usize, x: usize| &table[(y * 3 + x) * 8..][..8];
        assert_eq!(pixel(0, 0), [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]);
        let (slow, two) = (0.01_f32, 2.0_f32);
        let expected = [
            two.sin(),
            (two * slow).sin(),
            two.cos(),
            (two * slow).cos(),
            1.0_f32.sin(),
            slow.sin(),
            1.0_f32.cos(),
            slow.cos(),
        ];
        for (found, expected) in pixel(1, 2).iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6);
        }
    }
}
