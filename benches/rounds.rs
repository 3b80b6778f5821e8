//! Our side of `scripts/bench-vs-pytorch`: reads lines `WORK ENCODER IMAGES THREADS` from stdin, does
//! that work once on images of 32 px, and answers with the milliseconds it took. `train` is forward,
//! backward and an SGD step of the encoder; `embed` is what the server does.

use selfstream::encoder::{Architecture, HostParams};
use selfstream::ops::native::{Served, Tape};
use selfstream::ops::update::{Sgd, sgd};
use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::time::Instant;

/// As in the program itself.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SIDE_PX: usize = 32;

fn noise(length: usize) -> Vec<f32> {
    (0..length).map(|i| (i * 7919 % 1009) as f32 / 504.5 - 1.0).collect()
}

/// One kind of work, set up; called once a round.
type Round = Box<dyn FnMut() + Send>;

fn train(architecture: Architecture, n_images: usize) -> Round {
    let plan = architecture.plan();
    let mut params = HostParams::init(&plan, [1, 0]).expect("it fits memory");
    let mut tape = Tape::new(&plan, n_images, SIDE_PX).expect("the plan fits");
    let mut gradient = vec![0.0; params.values.len()];
    let mut velocity = vec![0.0; params.values.len()];
    let (images, pull) =
        (noise(n_images * SIDE_PX * SIDE_PX * 3), noise(n_images * plan.feature_dim));
    let rule = Sgd { rate: 1e-6, momentum: 0.9, decay: 5e-4, trust: 1.0 };
    Box::new(move || {
        tape.forward(&params, images.clone()).expect("images of its size");
        tape.backward(&params, &pull, &mut gradient).expect("gradients of its size");
        sgd(rule, &mut params.values, &mut velocity, &gradient);
    })
}

fn embed(architecture: Architecture, n_images: usize) -> Round {
    let plan = architecture.plan();
    let params = HostParams::init(&plan, [1, 0]).expect("it fits memory");
    let served = Served::new(&plan, &params, SIDE_PX).expect("the plan fits");
    let images = noise(n_images * SIDE_PX * SIDE_PX * 3);
    Box::new(move || {
        served.embed(&images, n_images).expect("images of its size");
    })
}

#[expect(clippy::print_stdout, reason = "stdout is the way back to the script")]
fn main() {
    // `cargo test --benches` asks with an argument of its own, and has no line for us.
    let mut rounds: HashMap<String, (rayon::ThreadPool, Round)> = HashMap::new();
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("stdin is text");
        let (pool, round) = rounds.entry(line.clone()).or_insert_with(|| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [work, encoder, n_images, threads] = words[..] else {
                panic!("expected WORK ENCODER IMAGES THREADS, not {line:?}")
            };
            let architecture = encoder.parse().expect("an encoder's name");
            let n_images = n_images.parse().expect("a number of images");
            let threads = threads.parse().expect("a number of threads");
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let round = match work {
                "train" => train(architecture, n_images),
                "embed" => embed(architecture, n_images),
                other => panic!("unknown work {other:?}"),
            };
            (pool.expect("a pool starts"), round)
        });
        let began = Instant::now();
        pool.install(&mut *round);
        println!("{}", began.elapsed().as_secs_f64() * 1e3);
        std::io::stdout().flush().expect("the script listens");
    }
}
