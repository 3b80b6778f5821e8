//! The linear probe: how well a linear map of frozen features tells the classes apart.
//!
//! Features are standardised by the mean and standard deviation of the training features, then
//! multinomial logistic regression is trained on them: AdamW (Loshchilov and Hutter, "Decoupled
//! Weight Decay Regularization", 2019, algorithm 2) on the mean softmax cross-entropy, 60 epochs
//! of shuffled batches of 512, the learning rate falling linearly by epoch from 0.01 to nearly 0.
//!
//! Differs from the PyTorch protocol that it follows: weights start at zero, not at random. The
//! problem is convex, so the start does not decide the end. And a feature that is constant in
//! training is left out: divided by next to nothing, the smallest change of it in testing would
//! outweigh all others.

use super::{Embeddings, EvaluateError, accuracy};
use crate::seed::Rng;
use rand::seq::SliceRandom;

const EPOCHS: usize = 60;
const BATCH_IMAGES: usize = 512;
/// Learning rate of the first epoch.
const LR: f32 = 1e-2;
const WEIGHT_DECAY: f32 = 1e-4;
/// AdamW's decays of the first and second moment, and what keeps its quotient finite: the
/// defaults of PyTorch 2 and of the paper of Adam.
const BETA_1: f32 = 0.9;
const BETA_2: f32 = 0.999;
const EPSILON: f32 = 1e-8;
/// Added to a standard deviation before features are divided by it; the protocol's.
const MIN_DEVIATION: f64 = 1e-6;
/// A feature whose deviation is a smaller part of its mean than this is constant: some units in
/// the last place of an f32, which rounding alone can make.
const CONSTANT: f64 = 1e-6;
/// Partial sums of a product: as many as the compiler needs to fill vector registers.
const LANES: usize = 16;

/// Fraction of `test` whose class a probe trained on `train` finds. Classes are
/// `0..n_classes`; `rng` orders the batches.
///
/// # Errors
/// As [`Probe::train`] and [`Probe::classify`], or if there is not one label a test embedding.
pub fn linear_probe(
    train: &Embeddings,
    train_labels: &[usize],
    test: &Embeddings,
    test_labels: &[usize],
    rng: &mut Rng,
) -> Result<f64, EvaluateError> {
    let classes = Probe::train(train, train_labels, rng)?.classify(test)?;
    accuracy(&classes, test_labels)
}

/// A trained linear classifier.
pub struct Probe {
    standard: Standard,
    layer: Layer,
}

impl Probe {
    /// Trains on features `[N, D]` with a class each.
    ///
    /// # Errors
    /// If there are none, or not one label for each.
    pub fn train(
        features: &Embeddings,
        labels: &[usize],
        rng: &mut Rng,
    ) -> Result<Self, EvaluateError> {
        if features.len() != labels.len() {
            let (n_embeddings, n_labels) = (features.len(), labels.len());
            return Err(EvaluateError::Labels { n_embeddings, n_labels });
        }
        let last_class = labels.iter().max().ok_or(EvaluateError::NoReference)?;
        let standard = Standard::of(features);
        let features = standard.apply(features);
        let mut layer = Layer::zeros(last_class + 1, features.dim());
        let mut gradient = layer.clone();
        let mut optimizer = AdamW::new(&layer);
        let mut order: Vec<usize> = (0..labels.len()).collect();
        for epoch in 0..EPOCHS {
            let lr = LR * (1.0 - epoch as f32 / EPOCHS as f32);
            order.shuffle(rng);
            for batch in order.chunks(BATCH_IMAGES) {
                let rows = batch.iter().map(|index| (features.row(*index), labels[*index]));
                layer.loss_and_gradient(rows, &mut gradient);
                optimizer.step(&mut layer, &gradient, lr);
            }
        }
        Ok(Self { standard, layer })
    }

    /// The class of each of `features`, `[M, D]`.
    ///
    /// # Errors
    /// If the features are of another dimension.
    pub fn classify(&self, features: &Embeddings) -> Result<Vec<usize>, EvaluateError> {
        if features.dim() != self.layer.dim {
            let (expected, found) = (self.layer.dim, features.dim());
            return Err(EvaluateError::Dimension { expected, found });
        }
        let mut logits = vec![0.0; self.layer.bias.len()];
        let class = |row| {
            self.layer.logits(row, &mut logits);
            let mut best = 0;
            for (class, logit) in logits.iter().enumerate() {
                if *logit > logits[best] {
                    best = class;
                }
            }
            best
        };
        Ok(self.standard.apply(features).rows().map(class).collect())
    }
}

/// What standardises each feature, `[D]`: its mean is subtracted, then it is multiplied by one over
/// its standard deviation (that of a sample, divided by `N - 1`), or by zero if it is constant.
struct Standard {
    mean: Vec<f64>,
    scale: Vec<f64>,
}

impl Standard {
    fn of(features: &Embeddings) -> Self {
        let n = features.len() as f64;
        let mut mean = vec![0.0; features.dim()];
        for row in features.rows() {
            mean.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value) / n);
        }
        let mut squares = vec![0.0; features.dim()];
        for row in features.rows() {
            for ((sum, mean), value) in squares.iter_mut().zip(&mean).zip(row) {
                *sum += (f64::from(*value) - mean).powi(2);
            }
        }
        let scale = squares.into_iter().zip(&mean).map(|(sum, mean)| {
            let deviation: f64 = (sum / (n - 1.0).max(1.0)).sqrt();
            let is_constant = deviation <= CONSTANT * mean.abs();
            if is_constant { 0.0 } else { 1.0 / (deviation + MIN_DEVIATION) }
        });
        Self { scale: scale.collect(), mean }
    }

    fn apply(&self, features: &Embeddings) -> Embeddings {
        let mut values = Vec::with_capacity(features.len() * features.dim());
        for row in features.rows() {
            let standard = row.iter().zip(&self.mean).zip(&self.scale);
            values.extend(standard.map(|((value, mean), scale)| {
                // The bounds keep what is finite finite: f32::MAX / 1e-6 is not.
                let value = (f64::from(*value) - mean) * scale;
                value.clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32
            }));
        }
        Embeddings::new(values, features.dim()).expect("clamped values in the same shape")
    }
}

/// The parameters of the map, or a gradient of them.
#[derive(Clone)]
struct Layer {
    dim: usize,
    /// `[K, D]` for K classes.
    weights: Vec<f32>,
    /// `[K]`.
    bias: Vec<f32>,
}

impl Layer {
    fn zeros(n_classes: usize, dim: usize) -> Self {
        Self { dim, weights: vec![0.0; n_classes * dim], bias: vec![0.0; n_classes] }
    }

    /// `logits[k] = weights[k] . row + bias[k]`.
    fn logits(&self, row: &[f32], logits: &mut [f32]) {
        let classes = self.weights.chunks_exact(self.dim).zip(&self.bias);
        for (logit, (weights, bias)) in logits.iter_mut().zip(classes) {
            *logit = dot(weights, row) + bias;
        }
    }

    /// Mean cross-entropy over `rows`, each with its class, and its gradient.
    fn loss_and_gradient<'a>(
        &self,
        rows: impl ExactSizeIterator<Item = (&'a [f32], usize)>,
        gradient: &mut Self,
    ) -> f64 {
        let per_row = 1.0 / rows.len() as f32;
        let mut loss = 0.0;
        let mut errors = vec![0.0; self.bias.len()];
        gradient.weights.fill(0.0);
        gradient.bias.fill(0.0);
        for (row, label) in rows {
            self.logits(row, &mut errors);
            loss += f64::from(softmax_error(&mut errors, label) * per_row);
            let classes = gradient.weights.chunks_exact_mut(self.dim).zip(&mut gradient.bias);
            for (error, (weights, bias)) in errors.iter().zip(classes) {
                let error = error * per_row;
                *bias += error;
                weights.iter_mut().zip(row).for_each(|(sum, value)| *sum += error * value);
            }
        }
        loss
    }
}

/// Turns logits into the gradient of the cross-entropy with respect to them, `softmax - one_hot`,
/// and returns the cross-entropy.
fn softmax_error(logits: &mut [f32], label: usize) -> f32 {
    let highest = logits.iter().copied().fold(f32::MIN, f32::max);
    let own = logits[label] - highest;
    logits.iter_mut().for_each(|logit| *logit = (*logit - highest).exp());
    let sum: f32 = logits.iter().sum();
    logits.iter_mut().for_each(|value| *value /= sum);
    logits[label] -= 1.0;
    sum.ln() - own
}

/// The scalar product, in [`LANES`] partial sums that are added up in a fixed order.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// AdamW's moments of every parameter.
struct AdamW {
    first: Layer,
    second: Layer,
    steps: i32,
}

impl AdamW {
    fn new(layer: &Layer) -> Self {
        let zeros = Layer::zeros(layer.bias.len(), layer.dim);
        Self { first: zeros.clone(), second: zeros, steps: 0 }
    }

    fn step(&mut self, layer: &mut Layer, gradient: &Layer, lr: f32) {
        self.steps += 1;
        let rate = Rate {
            lr,
            first_correction: 1.0 - BETA_1.powi(self.steps),
            second_correction: 1.0 - BETA_2.powi(self.steps),
        };
        let Self { first, second, .. } = self;
        rate.step(&mut layer.weights, &gradient.weights, &mut first.weights, &mut second.weights);
        rate.step(&mut layer.bias, &gradient.bias, &mut first.bias, &mut second.bias);
    }
}

/// What one step of AdamW has in common for all parameters.
struct Rate {
    lr: f32,
    first_correction: f32,
    second_correction: f32,
}

impl Rate {
    fn step(&self, values: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32]) {
        let moments = first.iter_mut().zip(second);
        for ((value, gradient), (first, second)) in values.iter_mut().zip(gradient).zip(moments) {
            *value -= self.lr * WEIGHT_DECAY * *value;
            *first += (1.0 - BETA_1) * (gradient - *first);
            *second += (1.0 - BETA_2) * (gradient * gradient - *second);
            let deviation = (*second / self.second_correction).sqrt() + EPSILON;
            *value -= self.lr * (*first / self.first_correction) / deviation;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::{self, Purpose};
    use rand::RngExt;

    fn rng(counter: u64) -> Rng {
        seed::rng(3, Purpose::Evaluate, &[counter])
    }

    /// `n` rows of uniform noise in -1..1.
    fn noise(n: usize, dim: usize, rng: &mut Rng) -> Embeddings {
        let values = (0..n * dim).map(|_| rng.random_range(-1.0..1.0)).collect();
        Embeddings::new(values, dim).unwrap()
    }

    #[test]
    fn separable_data_is_separated() {
        // The class is the larger of two noisy features; their scales differ by a million.
        let mut rng = rng(0);
        let (mut values, mut labels) = (Vec::new(), Vec::new());
        for index in 0..2000 {
            let label = index % 3;
            for column in 0..3 {
                let centre = if column == label { 1.5 } else { 0.0 };
                let scale = 1000_f32.powi(column as i32 - 1);
                values.push((centre + rng.random_range(-0.5..0.5)) * scale + 7.0 * scale);
            }
            labels.push(label);
        }
        let test = Embeddings::new(values.split_off(1500 * 3), 3).unwrap();
        let train = Embeddings::new(values, 3).unwrap();
        let (train_labels, test_labels) = labels.split_at(1500);
        let found = linear_probe(&train, train_labels, &test, test_labels, &mut rng).unwrap();
        assert_eq!(found, 1.0);
    }

    #[test]
    fn labels_of_noise_are_found_by_chance() {
        let mut rng = rng(1);
        let (train, test) = (noise(2000, 8, &mut rng), noise(2000, 8, &mut rng));
        let labels: Vec<_> = (0..2000).map(|_| rng.random_range(0..4)).collect();
        let test_labels: Vec<_> = (0..2000).map(|_| rng.random_range(0..4)).collect();
        let found = linear_probe(&train, &labels, &test, &test_labels, &mut rng).unwrap();
        // Four standard errors: 4 * sqrt(0.25 * 0.75 / 2000) = 0.039.
        assert!((found - 0.25).abs() < 0.039, "{found}");
    }

    #[test]
    fn the_gradient_is_that_of_the_loss() {
        let mut rng = rng(2);
        let (n_classes, dim) = (4, 19);
        let features = noise(30, dim, &mut rng);
        let labels: Vec<_> = (0..30).map(|_| rng.random_range(0..n_classes)).collect();
        let mut layer = Layer::zeros(n_classes, dim);
        layer.weights.iter_mut().for_each(|weight| *weight = rng.random_range(-1.0..1.0));
        layer.bias.iter_mut().for_each(|bias| *bias = rng.random_range(-1.0..1.0));
        let mut gradient = layer.clone();
        let mut spare = layer.clone();
        let rows = || features.rows().zip(labels.iter().copied());
        layer.loss_and_gradient(rows(), &mut gradient);
        // Central differences err by h^2 / 6 of the third derivative, under 1e-5 here, and by the
        // f32 rounding of the loss over h, about 1e-5.
        let (h, tolerance) = (1e-2, 1e-4);
        let mut check = |parameter: fn(&mut Layer, usize) -> &mut f32, index| {
            let mut loss_at = |offset: f32| {
                let mut moved = layer.clone();
                *parameter(&mut moved, index) += offset;
                moved.loss_and_gradient(rows(), &mut spare)
            };
            let expected = (loss_at(h) - loss_at(-h)) / f64::from(2.0 * h);
            let found = f64::from(*parameter(&mut gradient, index));
            assert!((found - expected).abs() < tolerance, "{index}: {found}, not {expected}");
        };
        (0..n_classes * dim).for_each(|index| check(|layer, i| &mut layer.weights[i], index));
        (0..n_classes).for_each(|index| check(|layer, i| &mut layer.bias[i], index));
    }

    #[test]
    fn a_step_of_the_optimiser_is_that_of_the_papers_algorithm() {
        // Two steps by hand in f64, Loshchilov and Hutter 2019, algorithm 2.
        let (start, gradients, lr) = (0.5_f64, [0.3_f64, -0.2], 0.1_f64);
        let (mut value, mut first, mut second) = (start, 0.0, 0.0);
        for (t, gradient) in (1..).zip(gradients) {
            first = 0.9 * first + 0.1 * gradient;
            second = 0.999 * second + 0.001 * gradient * gradient;
            let (m, v) = (first / (1.0 - 0.9_f64.powi(t)), second / (1.0 - 0.999_f64.powi(t)));
            value -= lr * (m / (v.sqrt() + 1e-8) + 1e-4 * value);
        }
        let layer = |weight: f64| Layer { dim: 1, weights: vec![weight as f32], bias: vec![0.0] };
        let mut stepped = layer(start);
        let mut optimizer = AdamW::new(&stepped);
        for gradient in gradients {
            optimizer.step(&mut stepped, &layer(gradient), lr as f32);
        }
        assert!((f64::from(stepped.weights[0]) - value).abs() < 1e-5);
        assert_eq!(stepped.bias, [0.0]);
    }

    #[test]
    fn a_feature_constant_in_training_has_no_say_in_testing() {
        let mut rng = rng(3);
        let mut with_constant = |n: usize, constant: f32| {
            let mut values = Vec::new();
            for index in 0..n {
                let sign = if index % 2 == 0 { -1.0 } else { 1.0 };
                values.extend([sign + rng.random_range(-0.1..0.1), constant]);
            }
            Embeddings::new(values, 2).unwrap()
        };
        let (train, test) = (with_constant(100, 0.1), with_constant(20, 9.0));
        let labels: Vec<_> = (0..100).map(|index| index % 2).collect();
        let mut order = seed::rng(0, Purpose::Evaluate, &[]);
        let found = linear_probe(&train, &labels, &test, &labels[..20], &mut order).unwrap();
        assert_eq!(found, 1.0);
    }

    #[test]
    fn the_same_seed_gives_the_same_probe() {
        let features = noise(700, 5, &mut rng(4));
        let labels: Vec<_> = (0..700).map(|index| index % 3).collect();
        let weights =
            |counter| Probe::train(&features, &labels, &mut rng(counter)).unwrap().layer.weights;
        assert_eq!(weights(5), weights(5));
        assert_ne!(weights(5), weights(6));
    }
}
