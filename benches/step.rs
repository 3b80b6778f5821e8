//! A training step of the encoder alone (forward and backward), 128 inputs of 32 px, by the native
//! kernels and by the interpreter on candle tensors; and embedding, by both. The counter is images.

use candle_core::{Device, Tensor};
use divan::Bencher;
use divan::counter::ItemsCount;
use selfstream::encoder::{Architecture, HostParams, Params};
use selfstream::ops::candle::interpreter::{forward_inference, forward_train};
use selfstream::ops::native::{Precision, Served, Tape};

const IMAGES: usize = 128;
const SIDE_PX: usize = 32;
const THREADS: [usize; 2] = [1, 2];
const ENCODERS: [&str; 3] = ["slim-resnet", "resnet18", "vit-tiny-patch4"];

fn pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool starts")
}

fn architecture(name: &str) -> Architecture {
    name.parse().expect("an encoder's name")
}

fn noise(length: usize) -> Vec<f32> {
    (0..length).map(|i| (i * 7919 % 1009) as f32 / 504.5 - 1.0).collect()
}

fn images(n_images: usize) -> Vec<f32> {
    noise(n_images * SIDE_PX * SIDE_PX * 3)
}

fn tensors(architecture: Architecture) -> Params {
    let plan = architecture.plan();
    Params::init(&plan.weights, &plan.moments, [1, 0], &Device::Cpu).expect("it fits memory")
}

#[divan::bench(args = ENCODERS, consts = THREADS, sample_count = 7, sample_size = 1)]
fn native_step<const THREAD_COUNT: usize>(bencher: Bencher<'_, '_>, encoder: &str) {
    step::<THREAD_COUNT>(bencher, encoder, Precision::F32);
}

#[divan::bench(args = ENCODERS, consts = THREADS, sample_count = 7, sample_size = 1)]
fn native_step_bf16<const THREAD_COUNT: usize>(bencher: Bencher<'_, '_>, encoder: &str) {
    step::<THREAD_COUNT>(bencher, encoder, Precision::Bf16);
}

fn step<const THREAD_COUNT: usize>(bencher: Bencher<'_, '_>, encoder: &str, precision: Precision) {
    let plan = architecture(encoder).plan();
    let params = HostParams::init(&plan, [1, 0]).expect("it fits memory");
    let mut tape = Tape::storing(precision, &plan, IMAGES, SIDE_PX).expect("the plan fits");
    let mut gradient = vec![0.0; params.values.len()];
    let (images, pull) = (images(IMAGES), noise(IMAGES * plan.feature_dim));
    let pool = pool(THREAD_COUNT);
    bencher.counter(ItemsCount::new(IMAGES)).bench_local(|| {
        pool.install(|| {
            tape.forward(&params, images.clone()).expect("images of its size");
            tape.backward(&params, &pull, &mut gradient).expect("gradients of its size");
        });
    });
}

#[divan::bench(args = ENCODERS, consts = THREADS, sample_count = 3, sample_size = 1)]
fn candle_step<const THREAD_COUNT: usize>(bencher: Bencher<'_, '_>, encoder: &str) {
    let architecture = architecture(encoder);
    let (plan, params) = (architecture.plan(), tensors(architecture));
    let shape = (IMAGES, SIDE_PX, SIDE_PX, 3);
    let images = Tensor::from_vec(images(IMAGES), shape, &Device::Cpu).expect("f32");
    let pool = pool(THREAD_COUNT);
    bencher.counter(ItemsCount::new(IMAGES)).bench_local(|| {
        pool.install(|| forward_train(&plan, &params, &images)?.features.sum_all()?.backward())
    });
}

#[divan::bench(args = [1, 64], consts = THREADS, sample_count = 21)]
fn native_embed<const THREAD_COUNT: usize>(bencher: Bencher<'_, '_>, n_images: usize) {
    let plan = Architecture::SlimResnet.plan();
    let params = HostParams::init(&plan, [1, 0]).expect("it fits memory");
    let served = Served::new(&plan, &params, SIDE_PX).expect("the plan fits");
    let images = images(n_images);
    let pool = pool(THREAD_COUNT);
    bencher
        .counter(ItemsCount::new(n_images))
        .bench_local(|| pool.install(|| served.embed(&images, n_images)));
}

#[divan::bench(args = [1, 64], consts = THREADS, sample_count = 7)]
fn candle_embed<const THREAD_COUNT: usize>(bencher: Bencher<'_, '_>, n_images: usize) {
    let (plan, params) = (Architecture::SlimResnet.plan(), tensors(Architecture::SlimResnet));
    let shape = (n_images, SIDE_PX, SIDE_PX, 3);
    let images = Tensor::from_vec(images(n_images), shape, &Device::Cpu).expect("f32");
    let pool = pool(THREAD_COUNT);
    bencher
        .counter(ItemsCount::new(n_images))
        .bench_local(|| pool.install(|| forward_inference(&plan, &params, &images)));
}
