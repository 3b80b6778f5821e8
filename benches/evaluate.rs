//! What an evaluation costs after embedding: 20,000 reference and 4,000 test embeddings of
//! dimension 256 in 10 classes, the size of the CIFAR-10 subset that the project tests with.

use divan::Bencher;
use divan::counter::ItemsCount;
use rand::RngExt;
use selfstream::evaluate::{Embeddings, knn_probe, linear_probe};
use selfstream::seed::{self, Purpose};
use std::hint::black_box;

const N_TRAIN: usize = 20_000;
const N_TEST: usize = 4_000;
const DIM: usize = 256;
const N_CLASSES: usize = 10;

/// Embeddings of uniform noise with random classes: neither probe's time depends on what it finds,
/// except that fewer references displace others as similarities are more alike.
fn noise(n_images: usize, counter: u64) -> (Embeddings, Vec<usize>) {
    let mut rng = seed::rng(0, Purpose::Evaluate, &[counter]);
    let values = (0..n_images * DIM).map(|_| rng.random_range(-1.0..1.0)).collect();
    let labels = (0..n_images).map(|_| rng.random_range(0..N_CLASSES)).collect();
    (Embeddings::new(values, DIM).expect("whole rows of finite values"), labels)
}

/// Images per second are test images here.
#[divan::bench(sample_count = 3, sample_size = 1)]
fn knn(bencher: Bencher<'_, '_>) {
    let (train, train_labels) = noise(N_TRAIN, 0);
    let (test, test_labels) = noise(N_TEST, 1);
    bencher
        .counter(ItemsCount::new(N_TEST))
        .bench(|| knn_probe(black_box(&train), &train_labels, &test, &test_labels));
}

/// Images per second are training images here, each seen in all 60 epochs.
#[divan::bench(sample_count = 3, sample_size = 1)]
fn linear(bencher: Bencher<'_, '_>) {
    let (train, train_labels) = noise(N_TRAIN, 0);
    let (test, test_labels) = noise(N_TEST, 1);
    bencher.counter(ItemsCount::new(N_TRAIN)).bench(|| {
        let mut rng = seed::rng(0, Purpose::Evaluate, &[2]);
        linear_probe(black_box(&train), &train_labels, &test, &test_labels, &mut rng)
    });
}
