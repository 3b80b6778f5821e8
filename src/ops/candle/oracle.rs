//! What the tests of the nodes share: seeded tensors on the device under test, and one law, that a
//! fast path there and its composed twin on the CPU have the same values and gradients.

use crate::device::under_test;
use candle_core::{Device, Result, Tensor, Var};

/// Numbers of -1..1, the same for the same seed, on the device under test.
pub(crate) fn noise(seed: u64, shape: &[usize]) -> Tensor {
    let mut rng = crate::seed::rng(seed, crate::seed::Purpose::Init, &[]);
    let values: Vec<f32> = (0..shape.iter().product::<usize>())
        .map(|_| rand::RngExt::random_range(&mut rng, -1.0..1.0))
        .collect();
    Tensor::from_vec(values, shape, &under_test()).expect("as many values as the shape has")
}

/// The numbers of a tensor, flat.
pub(crate) fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("an f32 tensor")
}

/// max |a - b| / max |b|, infinite if a number is not finite.
pub(crate) fn relative_error(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.shape(), b.shape());
    let (a, b) = (flat(a), flat(b));
    if a.iter().chain(&b).any(|value| !value.is_finite()) {
        return f32::INFINITY;
    }
    let largest = b.iter().fold(f32::MIN_POSITIVE, |largest, b| largest.max(b.abs()));
    a.iter().zip(&b).fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs())) / largest
}

/// The value of `operation` at `inputs`, and the gradient of each for the loss
/// sum(value * noise).
pub(crate) fn differentiate(
    inputs: &[Tensor],
    operation: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<Vec<Tensor>> {
    let variables: Vec<Var> = inputs.iter().map(Var::from_tensor).collect::<Result<_>>()?;
    let tracked: Vec<Tensor> = variables.iter().map(|var| var.as_tensor().clone()).collect();
    let value = operation(&tracked)?;
    let loss = (&value * noise(99, value.dims()).to_device(value.device())?)?.sum_all()?;
    let gradients = loss.backward()?;
    let mut all = vec![value.detach()];
    for variable in &variables {
        all.push(gradients.get(variable).expect("every input has a gradient").clone());
    }
    Ok(all)
}

/// Asserts that value and gradients of `fast` at `inputs` are those of `oracle` at their copies on
/// the CPU to `tolerance` (see [`relative_error`]).
pub(crate) fn assert_twins(
    context: &str,
    tolerance: f32,
    inputs: &[Tensor],
    fast: impl Fn(&[Tensor]) -> Result<Tensor>,
    oracle: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let fast = differentiate(inputs, fast).expect("the fast path runs");
    let copies = inputs.iter().map(|input| input.to_device(&Device::Cpu));
    let copies: Vec<Tensor> = copies.collect::<Result<_>>().expect("the CPU has room for them");
    let oracle = differentiate(&copies, oracle).expect("the oracle runs");
    for (index, (fast, oracle)) in fast.iter().zip(&oracle).enumerate() {
        let error = relative_error(fast, oracle);
        assert!(error <= tolerance, "{context}: result {index} is off by {error}");
    }
}

/// Asserts that the directional derivative of each input is the one of central differences, to
/// `tolerance` of its size. The sums are f64; what is left is the operation's own f32 rounding.
pub(crate) fn assert_slopes(
    tolerance: f64,
    inputs: &[Tensor],
    operation: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    const STEP: f64 = 1e-2; // a guess: large against f32 rounding, small against curvature
    let dot = |a: &Tensor, b: &Tensor| -> f64 {
        flat(a).iter().zip(flat(b)).map(|(a, b)| f64::from(*a) * f64::from(b)).sum()
    };
    let results = differentiate(inputs, &operation).expect("the operation runs");
    let weights = noise(99, results[0].dims());
    for (index, gradient) in results[1..].iter().enumerate() {
        // Along the gradient's signs the slope is large: its relative error means something.
        let direction = gradient.sign().expect("an f32 tensor");
        let loss = |step: f64| {
            let mut moved = inputs.to_vec();
            moved[index] = (&inputs[index] + (&direction * step).expect("f32")).expect("f32");
            dot(&operation(&moved).expect("the operation runs"), &weights)
        };
        // Every entry moves at once, so the step shrinks as the tensor grows.
        let step = STEP / (inputs[index].elem_count() as f64).sqrt();
        let slope = (loss(step) - loss(-step)) / (2.0 * step);
        let expected = dot(gradient, &direction);
        let error = (slope - expected).abs() / expected.abs();
        assert!(error < tolerance, "input {index}: slope {slope}, gradient says {expected}");
    }
}

/// Asserts that `operation`'s value and gradients have the same bits in pools of 1, 2 and 3
/// threads.
pub(crate) fn assert_same_bits_for_any_threads(
    inputs: &[Tensor],
    operation: impl Fn(&[Tensor]) -> Result<Tensor> + Sync,
) {
    let run = |threads: usize| -> Vec<Vec<u32>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        let results = pool.install(|| differentiate(inputs, &operation)).expect("it runs");
        results.iter().map(|t| flat(t).iter().map(|value| value.to_bits()).collect()).collect()
    };
    let one = run(1);
    for threads in [2, 3] {
        assert!(one == run(threads), "{threads} threads give other bits than one");
    }
}
