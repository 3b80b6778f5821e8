//! Residual networks (He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385,
//! sections 3.3 and 4.1, table 1), with basic or bottleneck blocks.
//!
//! Differs from the paper: the small-image stem is SimCLR's (arXiv 2002.05709, appendix B.9), a
//! 3x3 convolution of stride 1 and no max pool; shortcuts that change shape are 1x1 convolutions
//! (the paper's option B); a bottleneck strides in its 3x3 convolution, as torchvision's does,
//! instead of its first.

use super::Stem;
use super::op::{Geometry, Value};
use super::plan::Plan;

/// How many times wider than its inner convolution a bottleneck's output is.
const EXPANSION: usize = 4;

/// The residual block of every stage.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Block {
    /// Two 3x3 convolutions.
    Basic,
    /// 1x1, 3x3 and 1x1 convolutions, the last [`EXPANSION`] times as wide.
    Bottleneck,
}

/// A network of four stages, each of `blocks` at its `widths`.
pub(super) fn resnet(
    architecture: &str,
    stem: Stem,
    block: Block,
    blocks: [usize; 4],
    widths: [usize; 4],
) -> Plan {
    let mut plan = Plan::new(architecture);
    let mut value = add_stem(&mut plan, stem, widths[0]);
    let mut channels = widths[0];
    for (stage, (n_blocks, width)) in blocks.into_iter().zip(widths).enumerate() {
        for index in 0..n_blocks {
            let stride = if stage > 0 && index == 0 { 2 } else { 1 };
            let name = format!("stage{}.block{}", stage + 1, index + 1);
            let outputs = if block == Block::Basic { width } else { EXPANSION * width };
            let shortcut = shortcut(&mut plan, &name, value, [channels, outputs], stride);
            let layers = match block {
                Block::Basic => vec![(width, window(3, stride)), (width, window(3, 1))],
                Block::Bottleneck => {
                    vec![(width, window(1, 1)), (width, window(3, stride)), (outputs, window(1, 1))]
                }
            };
            value = residual_block(&mut plan, &name, value, channels, &layers, shortcut);
            channels = outputs;
        }
    }
    plan.global_average_pool(value, channels);
    plan
}

fn window(kernel: usize, stride: usize) -> Geometry {
    Geometry { kernel, stride, padding: kernel / 2 }
}

fn add_stem(plan: &mut Plan, stem: Stem, width: usize) -> Value {
    let geometry = match stem {
        Stem::SmallImage => window(3, 1),
        Stem::Imagenet => window(7, 2),
    };
    let convolved = plan.convolution("stem", plan.images(), [3, width], geometry);
    let normed = plan.batch_norm("stem.norm", convolved, width, None, true);
    match stem {
        Stem::SmallImage => normed,
        Stem::Imagenet => plan.max_pool(normed),
    }
}

/// The input itself, or its projection where a block changes its shape.
fn shortcut(
    plan: &mut Plan,
    name: &str,
    input: Value,
    [channels_in, channels_out]: [usize; 2],
    stride: usize,
) -> Value {
    if stride == 1 && channels_in == channels_out {
        return input;
    }
    let name = format!("{name}.shortcut");
    let projected = plan.convolution(&name, input, [channels_in, channels_out], window(1, stride));
    plan.batch_norm(&format!("{name}.norm"), projected, channels_out, None, false)
}

/// Convolutions, each with its norm; the last norm adds the shortcut.
fn residual_block(
    plan: &mut Plan,
    name: &str,
    input: Value,
    channels: usize,
    layers: &[(usize, Geometry)],
    shortcut: Value,
) -> Value {
    let (mut value, mut channels) = (input, channels);
    for (index, &(width, geometry)) in layers.iter().enumerate() {
        let name = format!("{name}.conv{}", index + 1);
        let convolved = plan.convolution(&name, value, [channels, width], geometry);
        let residual = (index + 1 == layers.len()).then_some(shortcut);
        value = plan.batch_norm(&format!("{name}.norm"), convolved, width, residual, true);
        channels = width;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::Architecture;

    fn n_weights(plan: &Plan) -> usize {
        plan.weights.iter().map(|w| w.shape.iter().product::<usize>()).sum()
    }

    #[test]
    fn they_have_the_published_number_of_weights() {
        // torchvision's, without their classifiers.
        for (architecture, published, features) in [
            (Architecture::Resnet18(Stem::Imagenet), 11_176_512, 512),
            (Architecture::Resnet50(Stem::Imagenet), 23_508_032, 2048),
        ] {
            let plan = architecture.plan();
            assert_eq!(n_weights(&plan), published, "{architecture}");
            assert_eq!(plan.feature_dim, features);
        }
        // The 7x7 stem has 64 * 3 * 49 weights, the 3x3 one 64 * 3 * 9.
        let small = Architecture::Resnet18(Stem::SmallImage).plan();
        assert_eq!(n_weights(&small), 11_176_512 - 9_408 + 1_728);
    }
}
