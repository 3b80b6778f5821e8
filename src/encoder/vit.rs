//! Vision transformers (Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv 2010.11929,
//! section 3.1; the sizes are DeiT's, arXiv 2012.12877, table 1).
//!
//! Differs from the paper: no class token, the features are the mean over the patches, and positions
//! are fixed sines and cosines (both as in Beyer et al., "Better plain ViT baselines for
//! ImageNet-1k", arXiv 2205.01580), so that one set of weights takes images of any size. Pixels
//! past the last whole patch are not seen. With a grid they are the paper's: a class token, whose
//! output is the features, and a learned position for each patch of a grid of one size.

use super::Geometry;
use super::op::Value;
use super::plan::Plan;

/// Layers of both sizes.
const DEPTH: usize = 12;
/// Channels of a head.
const HEAD_CHANNELS: usize = 64;
/// Hidden channels of a block's perceptron for each of its own.
const EXPANSION: usize = 4;

/// A transformer of `width` channels over patches of side `patch_px`; with a `grid` of so many patches
/// a side it has a class token.
pub(super) fn vit(architecture: &str, width: usize, patch_px: usize, grid: Option<usize>) -> Plan {
    let mut plan = Plan::new(architecture);
    let geometry = Geometry { kernel: patch_px, stride: patch_px, padding: 0 };
    let patches = plan.convolution("patches", plan.images(), [3, width], geometry);
    let mut value = match grid {
        Some(side) => plan.tokens(patches, [side * side + 1, width]),
        None => plan.positions("patches", patches, width),
    };
    for block in 0..DEPTH {
        value = encoder_block(&mut plan, &format!("block{}", block + 1), value, width);
    }
    let normed = plan.layer_norm("norm", value, width);
    match grid {
        Some(_) => plan.first_pixel(normed, width),
        None => plan.global_average_pool(normed, width),
    }
    plan
}

/// Attention, then a perceptron, each of the normalised input and added to it.
fn encoder_block(plan: &mut Plan, name: &str, input: Value, width: usize) -> Value {
    let of = |part: &str| format!("{name}.{part}");
    let normed = plan.layer_norm(&of("norm1"), input, width);
    let attended = plan.attention(&of("attention.qkv"), normed, width, width / HEAD_CHANNELS);
    let value = plan.linear(&of("attention.output"), attended, [width, width], Some(input));
    let normed = plan.layer_norm(&of("norm2"), value, width);
    let hidden = plan.linear(&of("mlp.hidden"), normed, [width, EXPANSION * width], None);
    let hidden = plan.gelu(hidden);
    plan.linear(&of("mlp.output"), hidden, [EXPANSION * width, width], Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_have_the_published_number_of_weights() {
        // timm's vit_tiny_patch16_224 and vit_small_patch16_224 without their classifiers have
        // 5,524,416 and 21,665,664; a class token and 197 learned positions are not ours.
        for (width, published) in [(192, 5_524_416), (384, 21_665_664)] {
            let n_weights = |plan: &Plan| -> usize {
                plan.weights.iter().map(|w| w.shape.iter().product::<usize>()).sum()
            };
            let plan = vit("vit", width, 16, None);
            assert_eq!(n_weights(&plan), published - width - 197 * width);
            assert_eq!(plan.feature_dim, width);
            // With a grid the class token and the patches' bias are in the positions.
            let plan = vit("vit", width, 16, Some(14));
            assert_eq!(n_weights(&plan), published - 2 * width);
            assert_eq!(plan.feature_dim, width);
        }
    }
}
