//! What the monitors cost: keeping a step's embeddings, at each step, and the figures, at each candidate.

use divan::Bencher;
use rand::RngExt;
use selfstream::gate::monitor::Window;
use selfstream::seed::{self, Purpose};

/// A batch of the default configuration: 64 images, two views each, of the default encoder.
const IMAGES: usize = 64;
const VIEWS: usize = 2;
const DIM: usize = 256;

/// A step's embeddings, flat `[VIEWS, IMAGES, DIM]`.
fn embeddings(step: u64) -> Vec<f32> {
    let mut rng = seed::rng(0, Purpose::Evaluate, &[step]);
    (0..VIEWS * IMAGES * DIM).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// A window that is full.
fn window() -> Window {
    let mut window = Window::default();
    (0..8).for_each(|step| window.push(&embeddings(step), IMAGES, DIM));
    window
}

#[divan::bench]
fn keep_a_step(bencher: Bencher<'_, '_>) {
    let (mut window, features) = (window(), embeddings(9));
    bencher.bench_local(|| window.push(&features, IMAGES, DIM));
}

#[divan::bench]
fn figures(bencher: Bencher<'_, '_>) {
    let window = window();
    bencher.bench_local(|| window.figures());
}
