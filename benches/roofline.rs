//! How near each convolution comes to the processor's peak: `cargo bench --bench roofline` prints, for
//! one thread, the rate of products and sums on registers alone, and the share of it that the three
//! products of every layer of an encoder reach. Beside other work the fastest of the rounds is the
//! figure to keep, so that is what is printed.
//!
//! Arguments name encoders; without any it takes those that docs/PERFORMANCE.md has.

use selfstream::encoder::Architecture;
use selfstream::ops::native::roofline::{Layer, multiply_and_add};
use std::time::Instant;

/// As in the program itself.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const IMAGES: usize = 128;
const SIDE_PX: usize = 32;
const ROUNDS: usize = 9;
const ENCODERS: [&str; 3] = ["slim-resnet", "resnet18", "vit-tiny-patch4"];

/// Seconds of the fastest of some rounds, after one that warms up.
fn fastest(mut work: impl FnMut()) -> f64 {
    work();
    let seconds = (0..ROUNDS).map(|_| {
        let began = Instant::now();
        work();
        began.elapsed().as_secs_f64()
    });
    seconds.fold(f64::INFINITY, f64::min)
}

/// Products and sums a second, in 10^9.
fn peak() -> f64 {
    const TIMES: usize = 20_000_000;
    let operations = multiply_and_add(1);
    operations as f64 * TIMES as f64 / fastest(|| _ = multiply_and_add(TIMES)) / 1e9
}

#[expect(clippy::print_stdout, reason = "this is what it is for")]
fn print(encoder: &str, peak: f64) {
    let architecture: Architecture = encoder.parse().expect("an encoder's name");
    let layers = Layer::of(&architecture.plan(), IMAGES, SIDE_PX).expect("images of 32 px fit");
    // Operations and seconds of a whole step, by product.
    let mut totals = [(0.0, 0.0); 3];
    println!("\n{encoder}, {IMAGES} images of {SIDE_PX} px, {peak:.1} GFLOP/s at the peak\n");
    println!("| layer | times | forward | backward, data | backward, weights |");
    println!("|---|---|---|---|---|");
    for mut layer in layers {
        let (name, n_times) = (layer.name(), layer.n_times as f64);
        let operations = layer.operations() as f64;
        let has_images = layer.backward_data();
        let seconds = [
            Some(fastest(|| layer.forward())),
            has_images.then(|| fastest(|| _ = layer.backward_data())),
            Some(fastest(|| layer.backward_weights())),
        ];
        let mut shares = vec![];
        for (seconds, (all_operations, all_seconds)) in seconds.into_iter().zip(&mut totals) {
            let Some(seconds) = seconds else {
                shares.push("-".to_owned());
                continue;
            };
            *all_operations += n_times * operations;
            *all_seconds += n_times * seconds;
            shares.push(share(operations, seconds, peak));
        }
        println!("| {name} | {n_times} | {} |", shares.join(" | "));
    }
    let all = totals.map(|(operations, seconds)| share(operations, seconds, peak));
    println!("| all | | {} |", all.join(" | "));
}

fn share(operations: f64, seconds: f64, peak: f64) -> String {
    format!("{:.0} %", 100.0 * operations / seconds / 1e9 / peak)
}

fn main() {
    let (flags, named): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|argument| argument.starts_with('-'));
    // `cargo test --benches` starts this too.
    if !flags.iter().any(|flag| flag == "--bench") {
        return;
    }
    let encoders = if named.is_empty() { ENCODERS.map(str::to_owned).to_vec() } else { named };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool starts");
    pool.install(|| {
        let peak = peak();
        encoders.iter().for_each(|encoder| print(encoder, peak));
    });
}
