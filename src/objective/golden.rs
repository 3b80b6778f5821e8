//! Agreement of losses and gradients with PyTorch on the cases of `tests/golden/objective.json`,
//! and of gradients with slopes.

use candle_core::{Device, Result, Tensor, Var};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Of the largest number that is compared: f32 against f64.
const TOLERANCE: f64 = 2e-5;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    objective: String,
    arguments: BTreeMap<String, f64>,
    inputs: Vec<Input>,
    loss: f64,
}

#[derive(Deserialize)]
struct Input {
    shape: Vec<usize>,
    values: Vec<f32>,
    /// Of the loss; absent where none must flow.
    gradient: Option<Vec<f64>>,
}

/// The numbers of a case, by name.
pub(super) type Arguments = BTreeMap<String, f64>;

/// Holds `loss` to every case of `objective`: its value, and its gradient in each input.
pub(super) fn check(objective: &str, loss: impl Fn(&[Tensor], &Arguments) -> Result<Tensor>) {
    let text = include_str!("../../tests/golden/objective.json");
    let golden: Golden = serde_json::from_str(text).unwrap();
    let mut n_cases = 0;
    for case in golden.cases.iter().filter(|case| case.objective == objective) {
        n_cases += 1;
        let about = format!("{objective} {:?}", case.arguments);
        let variables = variables(&case.inputs);
        let tensors: Vec<Tensor> = variables.iter().map(|v| v.as_tensor().clone()).collect();
        let found = loss(&tensors, &case.arguments).unwrap();
        let value = f64::from(found.to_scalar::<f32>().unwrap());
        let error = (value - case.loss).abs();
        assert!(error <= TOLERANCE * case.loss.abs().max(1.0), "{about}: {value}, {}", case.loss);
        let gradients = found.backward().unwrap();
        for (index, (variable, input)) in variables.iter().zip(&case.inputs).enumerate() {
            let about = format!("{about}, input {index}");
            match (&input.gradient, gradients.get(variable)) {
                (None, None) => {}
                (Some(expected), Some(found)) => {
                    let found = found.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                    assert_eq!(found.len(), expected.len(), "{about}");
                    let largest =
                        expected.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
                    for (found, expected) in found.iter().zip(expected) {
                        let error = (f64::from(*found) - expected).abs();
                        assert!(error <= TOLERANCE * largest, "{about}: {found}, {expected}");
                    }
                }
                (expected, found) => panic!(
                    "{about}: a gradient is {}, and was {}",
                    if expected.is_some() { "wanted" } else { "not wanted" },
                    if found.is_some() { "made" } else { "not made" }
                ),
            }
        }
        check_slope(&about, &tensors, &variables, &gradients, |x| loss(x, &case.arguments));
    }
    assert!(n_cases > 0, "no case of {objective}");
}

fn variables(inputs: &[Input]) -> Vec<Var> {
    let variable = |input: &Input| {
        let shape = input.shape.clone();
        let tensor = Tensor::from_vec(input.values.clone(), shape, &Device::Cpu).unwrap();
        Var::from_tensor(&tensor).unwrap()
    };
    inputs.iter().map(variable).collect()
}

/// Along a direction that no coordinate is special in, the loss changes by what the gradient says.
fn check_slope(
    about: &str,
    tensors: &[Tensor],
    variables: &[Var],
    gradients: &candle_core::backprop::GradStore,
    loss: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    const STEP: f64 = 3e-3;
    let direction = |tensor: &Tensor, seed: usize| {
        let n = tensor.elem_count();
        let values = (0..n).map(|i| (((i + seed) * 7919) % 1009) as f32 / 504.5 - 1.0).collect();
        Tensor::from_vec(values, tensor.shape(), &Device::Cpu).unwrap()
    };
    let (mut predicted, mut moved) = (0.0, [vec![], vec![]]);
    for (index, (tensor, variable)) in tensors.iter().zip(variables).enumerate() {
        let detached = tensor.detach();
        let Some(gradient) = gradients.get(variable) else {
            moved.iter_mut().for_each(|moved| moved.push(detached.clone()));
            continue;
        };
        let direction = direction(tensor, index);
        let product = gradient.mul(&direction).unwrap().sum_all().unwrap();
        predicted += f64::from(product.to_scalar::<f32>().unwrap());
        for (moved, by) in moved.iter_mut().zip([STEP, -STEP]) {
            moved.push((&detached + (&direction * by).unwrap()).unwrap());
        }
    }
    let values = moved.map(|x| f64::from(loss(&x).unwrap().to_scalar::<f32>().unwrap()));
    let slope = (values[0] - values[1]) / (2.0 * STEP);
    // Two roundings of the loss over the step, and what the third derivative adds.
    let tolerance = 0.01 * slope.abs() + 2e-7 * values[0].abs().max(1.0) / STEP;
    assert!((slope - predicted).abs() <= tolerance, "{about}: slope {slope}, said {predicted}");
}
