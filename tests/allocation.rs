//! A steady training step of the encoder allocates nothing: every buffer is made with the tape or by
//! the first steps. Counted by the process's allocator, which is why this is a program of its own.

use selfstream::encoder::{Architecture, HostParams};
use selfstream::ops::native::{Precision, Tape};
use selfstream::ops::update::{Sgd, sgd};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator with a count.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const IMAGES: usize = 8;
const SIDE_PX: usize = 20;

fn noise(length: usize) -> Vec<f32> {
    (0..length).map(|i| (i * 7919 % 1009) as f32 / 504.5 - 1.0).collect()
}

/// Steps in a row without an allocation that make a steady state.
const STEADY_STEPS: usize = 3;

/// Until then a thread may meet a kind of task for the first time, and make room for it: late where
/// the machine is busy.
const STEPS_MAX: usize = 60;

/// Allocations of each step, the first one after the tape was made, until they end or there are too
/// many steps.
fn allocations(encoder: &str, precision: Precision) -> Vec<usize> {
    let plan = encoder.parse::<Architecture>().expect("an encoder").plan();
    let mut params = HostParams::init(&plan, [1, 0]).expect("it fits memory");
    let mut tape = Tape::storing(precision, &plan, IMAGES, SIDE_PX).expect("the plan fits");
    let mut gradient = vec![0.0; params.values.len()];
    let mut velocity = vec![0.0; params.values.len()];
    let rule = Sgd { rate: 1e-4, momentum: 0.9, decay: 5e-4, trust: 1.0 };
    let pull = noise(IMAGES * plan.feature_dim);
    let mut counts = Vec::with_capacity(STEPS_MAX);
    while counts.len() < STEPS_MAX && !is_steady(&counts) {
        let images = noise(IMAGES * SIDE_PX * SIDE_PX * 3);
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        tape.forward(&params, images).expect("images of its size");
        tape.backward(&params, &pull, &mut gradient).expect("gradients of its size");
        sgd(rule, &mut params.values, &mut velocity, &gradient);
        tape.absorb(&mut params, 0.1);
        counts.push(ALLOCATIONS.load(Ordering::Relaxed) - before);
    }
    counts
}

fn is_steady(counts: &[usize]) -> bool {
    counts.ends_with(&[0; STEADY_STEPS])
}

/// One test, as a second one beside it would be counted too.
#[test]
fn a_steady_step_allocates_nothing() {
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        for encoder in ["slim-resnet", "resnet50-imagenet", "vit-tiny-patch4"] {
            for precision in [Precision::F32, Precision::Bf16] {
                let counts = pool.install(|| allocations(encoder, precision));
                let what = format!("{encoder} in {precision:?} on {threads} threads");
                assert!(counts[0] > 0, "{what}: the count does not count");
                assert!(is_steady(&counts), "{what}: {counts:?}");
            }
        }
    }
}
