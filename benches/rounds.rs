//! Our side of `scripts/bench-vs-pytorch`: reads lines `WORK SUBJECT NUMBER THREADS` from stdin,
//! does that work once, and answers with the milliseconds it took. A fifth word is the precision,
//! `f32` or `bf16`; what is not available in it is answered with words instead of a number.
//!
//! The subject of `train` (forward, backward and an SGD step) and `embed` (what the server does) is
//! an encoder, the number counts images of 32 px. The subject of `views` and `decode-views` is a JPEG
//! file, of which two views are made, and made and decoded, 20 times; the number is their side.
//! `memory` answers with the KiB by which the process grows, at most, in training steps.
//!
//! The first argument, if there is one, names the vector instructions: `portable`, say.

use selfstream::augment::{self, Augmenter, Preprocess, ViewGroup, view_rng};
use selfstream::awake::awake;
use selfstream::decode;
use selfstream::encoder::{Architecture, HostParams};
use selfstream::isa::Isa;
use selfstream::ops::native::{Precision, Served, Tape};
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

fn train(
    precision: Precision,
    architecture: Architecture,
    mut params: HostParams,
    n_images: usize,
) -> Round {
    let plan = architecture.plan();
    let mut tape = Tape::storing(precision, &plan, n_images, SIDE_PX).expect("the plan fits");
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

fn params(architecture: Architecture) -> HostParams {
    HostParams::init(&architecture.plan(), [1, 0]).expect("it fits memory")
}

fn embed(architecture: Architecture, n_images: usize) -> Round {
    let served =
        Served::new(&architecture.plan(), &params(architecture), SIDE_PX).expect("the plan fits");
    let images = noise(n_images * SIDE_PX * SIDE_PX * 3);
    Box::new(move || {
        awake(|| served.embed(&images, n_images)).expect("images of its size");
    })
}

/// A line of this process's status in KiB.
fn status_kib(name: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with(name)).expect("a line of the status");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

/// The peak of three training steps over what the loaded process holds.
fn memory_kib(precision: Precision, architecture: Architecture, n_images: usize) -> f64 {
    let params = params(architecture);
    let held = status_kib("VmRSS");
    // Forgets the peak so far: proc_pid_clear_refs(5).
    std::fs::write("/proc/self/clear_refs", "5").expect("Linux");
    let mut step = train(precision, architecture, params, n_images);
    (0..3).for_each(|_| step());
    status_kib("VmHWM") - held
}

/// How often views are made in a round.
const VIEW_PAIRS: u64 = 20;

fn views(path: &str, side_px: usize, is_decoded_anew: bool) -> Round {
    let jpeg = std::fs::read(path).expect("the script wrote it");
    let decoding = decode::Config::default();
    let preprocess = Preprocess::imagenet(side_px);
    let mut augmenter =
        Augmenter::new(&augment::Config::default(), &preprocess, &[ViewGroup::alike(2)]);
    let mut out = vec![0.0; preprocess.input_len()];
    let mut pixels = decode::decode(&jpeg, None, &decoding).expect("a JPEG");
    Box::new(move || {
        for use_count in 0..VIEW_PAIRS {
            if is_decoded_anew {
                pixels = decode::decode(&jpeg, None, &decoding).expect("a JPEG");
            }
            for view in [0, 1] {
                let mut rng = view_rng(1, 2, use_count, view as u64);
                augmenter.view(&pixels, view, &mut rng, &mut out);
            }
        }
    })
}

/// The round that `line` asks for, in the pool of its threads; `None` if it is not available.
fn prepare(line: &str) -> Option<(rayon::ThreadPool, Round)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [work, subject, number, threads, ref precision @ ..] = words[..] else {
        panic!("expected WORK SUBJECT NUMBER THREADS [PRECISION], not {line:?}")
    };
    let number = number.parse().expect("a number of images or a side");
    let threads = threads.parse().expect("a number of threads");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let architecture = || subject.parse().expect("an encoder's name");
    let round = match (work, precision) {
        ("train", ["bf16"]) => {
            train(Precision::Bf16, architecture(), params(architecture()), number)
        }
        (_, ["bf16"]) => return None,
        ("train", _) => train(Precision::F32, architecture(), params(architecture()), number),
        ("embed", _) => embed(architecture(), number),
        ("views", _) => views(subject, number, false),
        ("decode-views", _) => views(subject, number, true),
        (other, _) => panic!("unknown work {other:?}"),
    };
    Some((pool.expect("a pool starts"), round))
}

/// What the script reads of a line.
fn answer(line: &str, rounds: &mut HashMap<String, Option<(rayon::ThreadPool, Round)>>) -> String {
    if let Some(of) = line.strip_prefix("memory ") {
        let words: Vec<&str> = of.split_whitespace().collect();
        let architecture = words[0].parse().expect("an encoder's name");
        let n_images = words[1].parse().expect("a number of images");
        let precision = if words[2..] == ["bf16"] { Precision::Bf16 } else { Precision::F32 };
        return memory_kib(precision, architecture, n_images).to_string();
    }
    match rounds.entry(line.to_owned()).or_insert_with(|| prepare(line)) {
        Some((pool, round)) => {
            let began = Instant::now();
            pool.install(&mut **round);
            (began.elapsed().as_secs_f64() * 1e3).to_string()
        }
        None => "not available".to_owned(),
    }
}

#[expect(clippy::print_stdout, reason = "stdout is the way back to the script")]
fn main() {
    // `cargo test --benches` asks with an option, and has no line for us.
    if let Some(name) = std::env::args().skip(1).find(|argument| !argument.starts_with('-')) {
        let isa = Isa::available().into_iter().find(|isa| isa.to_string() == name);
        isa.expect("instructions of this processor").choose().expect("nothing has run yet");
    }
    let mut rounds = HashMap::new();
    for line in std::io::stdin().lock().lines() {
        println!("{}", answer(&line.expect("stdin is text"), &mut rounds));
        std::io::stdout().flush().expect("the script listens");
    }
}
