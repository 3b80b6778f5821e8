//! Views per second of one worker thread, decoding not included.

use divan::Bencher;
use divan::counter::ItemsCount;
use selfstream::augment::{Augmenter, Config, Preprocess, ViewGroup, plain_view, view_rng};
use selfstream::decode::Pixels;

/// Encoder inputs: CIFAR's side and ImageNet's usual one.
const SIDES_PX: [usize; 2] = [32, 224];

/// Smooth colours under a little texture, of the size of ImageNet's photos.
fn photo() -> Pixels {
    let (width_px, height_px) = (500_u32, 375_u32);
    let pixel = |i: u32| {
        let (x, y) = (i % width_px, i / width_px);
        [x / 2, (x + y) / 4, y / 2].map(|value| (value + (x * 7 + y * 13) % 16).min(255) as u8)
    };
    Pixels { width_px, height_px, rgb: (0..width_px * height_px).flat_map(pixel).collect() }
}

/// Both views of one image, by the default configuration.
#[divan::bench(args = SIDES_PX)]
fn two_views(bencher: Bencher<'_, '_>, side_px: usize) {
    let (pixels, preprocess) = (photo(), Preprocess::imagenet(side_px));
    let mut augmenter = Augmenter::new(&Config::default(), &preprocess, &[ViewGroup::alike(2)]);
    let mut out = vec![0.0; preprocess.input_len()];
    let mut use_count = 0;
    bencher.counter(ItemsCount::new(2_usize)).bench_local(|| {
        // Each use draws other views, so the time is the mean over what chance asks for.
        use_count += 1;
        for view_index in [0, 1] {
            let mut rng = view_rng(1, 2, use_count, view_index as u64);
            augmenter.view(&pixels, view_index, &mut rng, &mut out);
        }
        divan::black_box(&out);
    });
}

/// The view without chance, as a query gets it.
#[divan::bench(args = SIDES_PX)]
fn plain(bencher: Bencher<'_, '_>, side_px: usize) {
    let (pixels, preprocess) = (photo(), Preprocess::imagenet(side_px));
    let mut out = vec![0.0; preprocess.input_len()];
    bencher.counter(ItemsCount::new(1_usize)).bench_local(|| {
        plain_view(&pixels, &preprocess, &mut out);
        divan::black_box(&out);
    });
}
