//! Weights that others trained, under our names: torchvision's ResNets, and the vision transformers of
//! timm, whose names DINO's checkpoints share. Files of our own names are taken as they are.
//!
//! Both keep convolutions as `[O, C, K, K]` and matrices as `[O, I]`; ours are `[K, K, C, O]` and
//! `[I, O]`. Classifiers are left out. A transformer's class token and the bias of its patches are
//! added to the positions they always stand at, which is the same function with fewer weights.

use super::params::{Array, NamedArrays};
use super::plan::Plan;

/// What keeps an array of a file from being a weight of an encoder.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// The file lacks it.
    #[error("tensor {0} is missing")]
    Missing(String),
    /// It is of another shape.
    #[error("tensor {name} has shape {found:?}, {architecture} has {expected:?} there")]
    Shape {
        /// Its name in the file.
        name: String,
        /// Its shape there.
        found: Vec<usize>,
        /// The shape that fits.
        expected: Vec<usize>,
        /// The encoder that it is to be of.
        architecture: String,
    },
    /// The encoder has no place for it.
    #[error("tensor {name} has no place in {architecture}{hint}")]
    Unexpected {
        /// Its name in the file.
        name: String,
        /// The encoder that it is to be of.
        architecture: String,
        /// What would have a place for it.
        hint: &'static str,
    },
}

/// The arrays of a file as those of `plan`, by our names.
///
/// # Errors
/// The first array that is missing, misshapen or without a place, by its name in the file.
pub fn adopt(plan: &Plan, arrays: NamedArrays) -> Result<NamedArrays, Misfit> {
    let is_ours = plan.weights.iter().any(|spec| arrays.contains_key(&spec.name));
    let mut file = File { plan, arrays, is_ours };
    let mut adopted = NamedArrays::new();
    for spec in &plan.weights {
        let array = match spec.name.as_str() {
            TOKENS if !is_ours => file.positions(&spec.shape)?,
            name => file.weight(name, &spec.shape)?,
        };
        adopted.insert(spec.name.clone(), array);
    }
    for spec in &plan.moments {
        for what in ["running_mean", "running_variance"] {
            let name = format!("{}.{what}", spec.name);
            adopted.insert(name.clone(), file.weight(&name, &[spec.channels])?);
        }
    }
    file.is_used_up()?;
    Ok(adopted)
}

/// The name of a class token's encoder's positions.
const TOKENS: &str = "tokens.positions";

/// A file's arrays that are not adopted yet.
struct File<'a> {
    plan: &'a Plan,
    arrays: NamedArrays,
    is_ours: bool,
}

impl File<'_> {
    /// The array that is weight or moments `name` of ours, in our order.
    fn weight(&mut self, name: &str, shape: &[usize]) -> Result<Array, Misfit> {
        if self.is_ours {
            return self.take(name, shape);
        }
        let foreign = foreign_name(name);
        Ok(match *shape {
            [kernel, _, inputs, outputs] => {
                to_hwio(&self.take(&foreign, &[outputs, inputs, kernel, kernel])?)
            }
            [inputs, outputs] => transposed(&self.take(&foreign, &[outputs, inputs])?),
            _ => self.take(&foreign, shape)?,
        })
    }

    /// timm's class token, positions and patch bias as one table `[T + 1, D]`.
    fn positions(&mut self, shape: &[usize]) -> Result<Array, Misfit> {
        let &[tokens, channels] = shape else { return Err(Misfit::Missing(TOKENS.to_owned())) };
        let token = self.take("cls_token", &[1, 1, channels])?;
        let mut table = self.take("pos_embed", &[1, tokens, channels])?;
        let bias = self.take("patch_embed.proj.bias", &[channels])?;
        for (index, row) in table.values.chunks_exact_mut(channels).enumerate() {
            let added = if index == 0 { &token } else { &bias };
            row.iter_mut().zip(&added.values).for_each(|(value, added)| *value += added);
        }
        table.shape = shape.to_vec();
        Ok(table)
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Array, Misfit> {
        let array = self.arrays.remove(name).ok_or_else(|| Misfit::Missing(name.to_owned()))?;
        if array.shape == shape {
            return Ok(array);
        }
        Err(Misfit::Shape {
            name: name.to_owned(),
            found: array.shape,
            expected: shape.to_vec(),
            architecture: self.plan.architecture.clone(),
        })
    }

    /// Nothing is left but what encoders don't have.
    fn is_used_up(&self) -> Result<(), Misfit> {
        let is_left_out = |name: &str| {
            let is_classifier = name.starts_with("fc.") || name.starts_with("head.");
            is_classifier || name.ends_with(".num_batches_tracked")
        };
        let Some(name) = self.arrays.keys().find(|name| !is_left_out(name)) else { return Ok(()) };
        let is_token = ["cls_token", "pos_embed"].contains(&name.as_str());
        Err(Misfit::Unexpected {
            name: name.clone(),
            architecture: self.plan.architecture.clone(),
            hint: if is_token { ": a vit-...-gridG has one for it" } else { "" },
        })
    }
}

/// The name that torchvision or timm has for `name` of ours.
fn foreign_name(name: &str) -> String {
    let (place, what) = name.rsplit_once('.').unwrap_or(("", name));
    let what = match what {
        "gamma" => "weight",
        "beta" => "bias",
        "running_variance" => "running_var",
        same => same,
    };
    let (outer, inner) = match place.split_once('.') {
        Some((stage, rest)) if stage.starts_with("stage") => {
            let (block, inner) = rest.split_once('.').unwrap_or((rest, ""));
            let (stage, block) = (&stage["stage".len()..], previous(block));
            (format!("layer{stage}.{block}."), of_residual_block(inner))
        }
        Some((block, inner)) if block.starts_with("block") => {
            (format!("blocks.{}.", previous(block)), of_transformer_block(inner).to_owned())
        }
        _ => (String::new(), of_ends(place).to_owned()),
    };
    format!("{outer}{inner}.{what}")
}

/// `block3` is the other's 2.
fn previous(block: &str) -> usize {
    let number = block.trim_start_matches("block").parse::<usize>();
    number.map_or(0, |number| number.saturating_sub(1))
}

fn of_residual_block(inner: &str) -> String {
    match inner.split_once('.') {
        Some(("shortcut", "norm")) => "downsample.1".to_owned(),
        Some((convolution, "norm")) => convolution.replace("conv", "bn"),
        _ if inner == "shortcut" => "downsample.0".to_owned(),
        _ => inner.to_owned(),
    }
}

fn of_transformer_block(inner: &str) -> &str {
    match inner {
        "attention.qkv" => "attn.qkv",
        "attention.output" => "attn.proj",
        "mlp.hidden" => "mlp.fc1",
        "mlp.output" => "mlp.fc2",
        same => same,
    }
}

fn of_ends(place: &str) -> &str {
    match place {
        "stem" => "conv1",
        "stem.norm" => "bn1",
        "patches" => "patch_embed.proj",
        same => same,
    }
}

/// `[O, I, K, K]` as `[K, K, I, O]`.
fn to_hwio(array: &Array) -> Array {
    let [outputs, inputs, height, width] = array.shape[..] else { return array.clone() };
    let window = height * width;
    let mut values = vec![0.0; array.values.len()];
    for (row, kernel) in array.values.chunks_exact(window).enumerate() {
        let (output, input) = (row / inputs, row % inputs);
        for (tap, value) in kernel.iter().enumerate() {
            values[(tap * inputs + input) * outputs + output] = *value;
        }
    }
    Array { shape: vec![height, width, inputs, outputs], values }
}

/// `[O, I]` as `[I, O]`.
fn transposed(array: &Array) -> Array {
    let [outputs, inputs] = array.shape[..] else { return array.clone() };
    let column = |input| (0..outputs).map(move |output| array.values[output * inputs + input]);
    Array { shape: vec![inputs, outputs], values: (0..inputs).flat_map(column).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::{Architecture, HostParams};
    use crate::ops::native::Served;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Golden {
        cases: Vec<Case>,
    }

    /// The tensors of a model of torchvision or timm, and what it made of two images.
    #[derive(Deserialize)]
    struct Case {
        architecture: String,
        side_px: usize,
        tensors: Vec<(String, Vec<usize>)>,
        /// The first features of each image.
        features: Vec<Vec<f32>>,
    }

    fn golden() -> Vec<Case> {
        let text = include_str!("../../tests/golden/pretrained.json");
        serde_json::from_str::<Golden>(text).unwrap().cases
    }

    /// The same as the script's `numbers`.
    fn noise(offset: usize, len: usize) -> impl Iterator<Item = f64> {
        (0..len as u32).map(move |index| {
            let mut x = index.wrapping_mul(2_654_435_761).wrapping_add(offset as u32);
            x ^= x >> 15;
            x = x.wrapping_mul(2_246_822_519);
            x ^= x >> 13;
            f64::from(x) / f64::from(1_u32 << 31) - 1.0
        })
    }

    /// The same as the script's `fill`.
    fn filled(name: &str, shape: &[usize]) -> Array {
        let len = shape.iter().product();
        let offset = name.bytes().map(usize::from).sum();
        let fan_in: usize = shape.iter().skip(1).product();
        let is_table = ["cls_token", "pos_embed"].contains(&name);
        let (middle, width) = match (shape.len(), name.rsplit('.').next().unwrap()) {
            (0, _) => (0.0, 0.0),
            _ if is_table => (0.0, 0.5),
            (1, "weight") => (1.0, 0.2),
            (1, "running_var") => (1.0, 0.5),
            (1, _) => (0.0, 0.1),
            _ => (0.0, (6.0 / fan_in as f64).sqrt()),
        };
        let values = noise(offset, len).map(|noise| (middle + width * noise) as f32).collect();
        Array { shape: shape.to_vec(), values }
    }

    fn arrays(case: &Case) -> NamedArrays {
        let tensors = case.tensors.iter();
        tensors.map(|(name, shape)| (name.clone(), filled(name, shape))).collect()
    }

    fn plan(case: &Case) -> Plan {
        case.architecture.parse::<Architecture>().unwrap().plan()
    }

    #[test]
    fn outputs_equal_those_of_torchvision_and_timm() {
        for case in golden() {
            let (plan, side_px) = (plan(&case), case.side_px);
            let mut params = HostParams::zeros(&plan);
            params.load_arrays("", &adopt(&plan, arrays(&case)).unwrap()).unwrap();
            let served = Served::new(&plan, &params, side_px).unwrap();
            let n_images = case.features.len();
            let len = n_images * side_px * side_px * 3;
            let images: Vec<f32> = noise(0, len).map(|value| value as f32).collect();
            let found = served.embed(&images, n_images).unwrap();
            for (found, expected) in found.chunks_exact(plan.feature_dim).zip(&case.features) {
                let largest = expected.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
                for (found, expected) in found.iter().zip(expected) {
                    let error = (found - expected).abs() / largest;
                    assert!(error < 1e-4, "{}: {found}, {expected}", case.architecture);
                }
            }
        }
    }

    #[test]
    fn what_is_missing_misshapen_or_unexpected_is_named() {
        for case in golden() {
            let plan = plan(&case);
            let whole = arrays(&case);
            let refusal = |arrays| adopt(&plan, arrays).unwrap_err().to_string();
            let is_needed = |name: &&String| {
                let is_classifier = name.starts_with("fc.") || name.starts_with("head.");
                !is_classifier && !name.ends_with("num_batches_tracked")
            };
            for name in whole.keys().filter(is_needed).step_by(7) {
                let mut lacking = whole.clone();
                lacking.remove(name);
                assert_eq!(refusal(lacking), format!("tensor {name} is missing"));
                let mut misshapen = whole.clone();
                misshapen.get_mut(name).unwrap().shape.push(1);
                let message = refusal(misshapen);
                assert!(message.contains(&format!("tensor {name} has shape")), "{message}");
                assert!(message.contains(&case.architecture), "{message}");
            }
            let mut further = whole.clone();
            further.insert("layer5.weight".to_owned(), filled("layer5.weight", &[1]));
            assert!(refusal(further).contains("tensor layer5.weight has no place"));
        }
    }

    #[test]
    fn another_encoders_file_is_refused_and_our_own_names_are_taken() {
        let resnet = &golden()[0];
        let small = Architecture::Resnet18(crate::encoder::Stem::SmallImage).plan();
        let message = adopt(&small, arrays(resnet)).unwrap_err().to_string();
        assert!(message.contains("tensor conv1.weight has shape [64, 3, 7, 7]"), "{message}");
        let params = HostParams::init(&small, [1, 0]).unwrap().to_arrays("");
        assert_eq!(adopt(&small, params.clone()).unwrap(), params);

        let tokens = golden().into_iter().find(|case| case.architecture.contains("grid")).unwrap();
        let without = "vit-tiny-patch16".parse::<Architecture>().unwrap().plan();
        let message = adopt(&without, arrays(&tokens)).unwrap_err().to_string();
        assert!(message.contains("cls_token") && message.contains("gridG"), "{message}");
    }
}
