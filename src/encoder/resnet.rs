//! Residual networks with basic blocks (He et al., "Deep Residual Learning for Image
//! Recognition", arXiv 1512.03385, sections 3.3 and 4.2).
//!
//! Differs from the paper: the small-image stem is SimCLR's (arXiv 2002.05709, appendix B.9), a
//! 3x3 convolution of stride 1 and no max pool; shortcuts that change shape are 1x1 convolutions
//! (the paper's option B).

use super::plan::{Geometry, Plan, Value};

const BLOCKS_PER_STAGE: usize = 2;

/// A ResNet-18 of the given stage widths for small images.
pub(super) fn small_image_resnet(architecture: &str, widths: [usize; 4]) -> Plan {
    let mut plan = Plan::new(architecture);
    let geometry = Geometry { kernel: 3, stride: 1, padding: 1 };
    let images = plan.images();
    let stem = plan.convolution("stem", images, [3, widths[0]], geometry);
    let mut value = plan.batch_norm("stem.norm", stem, widths[0], None, true);
    let mut channels = widths[0];
    for (stage, width) in widths.into_iter().enumerate() {
        for block in 0..BLOCKS_PER_STAGE {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let name = format!("stage{}.block{}", stage + 1, block + 1);
            value = basic_block(&mut plan, &name, value, [channels, width], stride);
            channels = width;
        }
    }
    plan.global_average_pool(value, channels);
    plan
}

/// Two 3x3 convolutions, each with its norm, around a shortcut.
fn basic_block(
    plan: &mut Plan,
    name: &str,
    input: Value,
    [channels_in, channels_out]: [usize; 2],
    stride: usize,
) -> Value {
    let window = |stride| Geometry { kernel: 3, stride, padding: 1 };
    let shortcut = if stride == 1 && channels_in == channels_out {
        input
    } else {
        let geometry = Geometry { kernel: 1, stride, padding: 0 };
        let name = format!("{name}.shortcut");
        let projected = plan.convolution(&name, input, [channels_in, channels_out], geometry);
        plan.batch_norm(&format!("{name}.norm"), projected, channels_out, None, false)
    };
    let conv1 = format!("{name}.conv1");
    let inner = plan.convolution(&conv1, input, [channels_in, channels_out], window(stride));
    let inner = plan.batch_norm(&format!("{conv1}.norm"), inner, channels_out, None, true);
    let conv2 = format!("{name}.conv2");
    let outer = plan.convolution(&conv2, inner, [channels_out, channels_out], window(1));
    plan.batch_norm(&format!("{conv2}.norm"), outer, channels_out, Some(shortcut), true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn n_weights(plan: &Plan) -> usize {
        plan.weights.iter().map(|w| w.shape.iter().product::<usize>()).sum()
    }

    #[test]
    fn resnet18_has_the_published_number_of_weights() {
        // torchvision's resnet18 without its classifier has 11,176,512; its 7x7 stem has
        // 64 * 3 * 49 = 9,408 weights and ours 64 * 3 * 9 = 1,728.
        let plan = small_image_resnet("resnet18", [64, 128, 256, 512]);
        assert_eq!(n_weights(&plan), 11_176_512 - 9_408 + 1_728);
        assert_eq!(plan.feature_dim, 512);
    }

    #[test]
    fn names_are_unique() {
        let plan = small_image_resnet("slim", [32, 64, 128, 256]);
        let mut names: Vec<_> = plan.weights.iter().map(|w| &w.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), plan.weights.len());
    }
}
