//! What an objective will ask for, told from its configuration, before anything is built.

use super::parts::head;
use super::{Config, SeenBy, Views};
use crate::augment::ViewGroup;

/// What an objective asks for; each number is an upper bound.
#[derive(Clone, Debug)]
pub struct Demand {
    /// The groups of views to make of each image.
    pub groups: Vec<ViewGroup>,
    /// Whether it compares with a moving average of the encoder and the heads.
    pub has_target: bool,
    /// Weights of its heads.
    pub head_weights: u64,
    /// Length of the longest row that a head makes, or takes.
    pub widest: u64,
    /// Rows that it keeps from step to step, each of `widest`: keys of a queue, images of a bank.
    pub kept_rows: u64,
}

impl Config {
    /// What it asks for beside features of length `feature_dim`.
    pub fn demand(&self, feature_dim: usize) -> Demand {
        let turned = ViewGroup { is_turned: true, ..ViewGroup::alike(4) };
        let pair = || vec![ViewGroup::alike(2)];
        let groups_of = |views: Vec<Views>| views.into_iter().map(|views| views.group).collect();
        let (groups, heads, has_target, kept_rows) = match self {
            Self::Byol(config) => {
                let views = config.small_views.beside_large(SeenBy::Both);
                (groups_of(views), vec![&config.head, &config.predictor], true, 0)
            }
            Self::MocoV3(config) => {
                let views = config.small_views.beside_large(SeenBy::Both);
                (groups_of(views), vec![&config.head, &config.predictor], true, 0)
            }
            Self::Simclr(config) => {
                let views = config.small_views.beside_large(SeenBy::Encoder);
                (groups_of(views), vec![&config.head], false, 0)
            }
            Self::Emp(config) => {
                let side = config.crop_side();
                let crops = ViewGroup { side, ..ViewGroup::alike(config.crops) };
                (vec![crops], vec![&config.head], false, 0)
            }
            Self::Moco(config) => (pair(), vec![&config.head], true, config.queue),
            Self::Instance(config) => (pair(), vec![&config.head], false, config.bank),
            Self::Sigmoid(config) => (pair(), vec![&config.head], false, 0),
            Self::Vicreg(config) => (pair(), vec![&config.head], false, 0),
            Self::Rotation(config) => {
                let head = &config.head;
                let widest = head.hidden.max(feature_dim) as u64;
                let head_weights = head.layers as u64 * widest * (widest + 3);
                let groups = vec![turned];
                return Demand { groups, has_target: false, head_weights, widest, kept_rows: 0 };
            }
        };
        let widths = heads.iter().flat_map(|head| [head.hidden, head.output]);
        let widest = widths.fold(feature_dim, usize::max) as u64;
        let head_weights = heads.iter().map(|head| most_weights(head, widest)).sum();
        Demand { groups, has_target, head_weights, widest, kept_rows: kept_rows as u64 }
    }
}

/// At most: a matrix from rows of up to `widest`, and scale, shift and bias, for each layer.
fn most_weights(head: &head::Config, widest: u64) -> u64 {
    let of_layer = |output: usize| (widest + 3) * output as u64;
    (head.layers as u64 - 1) * of_layer(head.hidden) + of_layer(head.output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::Elapsed;
    use candle_core::Device;

    #[test]
    fn nothing_that_is_built_asks_for_more() {
        for config in Config::every_form() {
            let (demand, built) = (config.demand(24), config.build(24, 1, &Device::Cpu).unwrap());
            let side_and_views = |group: &ViewGroup| (group.side, group.views_per_image);
            let asked: usize = built.views().iter().map(|views| views.group.views_per_image).sum();
            let told: usize = demand.groups.iter().map(|group| group.views_per_image).sum();
            assert_eq!(asked, told, "{config:?}");
            for group in built.views().iter().map(|views| views.group) {
                let is_told = |told: &ViewGroup| told.side == group.side;
                assert!(demand.groups.iter().any(is_told), "{:?}", side_and_views(&group));
            }
            assert_eq!(built.target(Elapsed::default()).is_some(), demand.has_target, "{config:?}");
            let weights = built.heads().weights.iter().map(|weight| weight.elem_count() as u64);
            assert!(weights.sum::<u64>() <= demand.head_weights, "{config:?}");
            let kept = built.state().unwrap();
            let kept: u64 = kept.values().map(|array| array.values.len() as u64).sum();
            let averages = if demand.has_target { demand.head_weights } else { 0 };
            // Beside each row, who it is of and what that looks like.
            let most = averages + demand.kept_rows * (demand.widest + 9) + 16;
            assert!(kept <= most, "{config:?}: {kept} numbers, told of {most}");
        }
    }
}
