//! What an encoder needs while it learns and while it serves.

use super::{Part, product};
use crate::augment::Side;
use crate::config::Config;
use crate::device::Precision;
use crate::encoder::{Plan, WeightSpec};
use crate::learner::MOST_WAITING;
use crate::objective::Demand;
use crate::ops::native::{Served, Tape};
use crate::setting::Invalid;

/// A number in memory.
const F32_BYTES: u64 = 4;
/// Of all weights in a step: their gradient, that of a pass over another side, their packed form, and room for
/// partial sums.
const WEIGHTS_OF_A_STEP: u64 = 4;
/// Of the weights and of each average: themselves and two moments, as AdamW has.
const WEIGHTS_OF_AN_OPTIMIZER: u64 = 3;
/// Tensors of each shape in the graph of a loss with its gradients. A guess.
const TENSORS_OF_A_LOSS: u64 = 16;
/// Batches of views: being made, made, in hand, and what a pass takes out of them twice.
const BATCHES_OF_VIEWS: u64 = 5;
/// Of what a step changes: the copy, and the file made of it; or while one is read, the file, its arrays, and those
/// of another.
const COPIES_OF_A_CHECKPOINT: u64 = 3;
/// Of a candidate's weights: its arrays and its file.
const WEIGHTS_OF_A_CANDIDATE: u64 = 2;
/// Beside those that are resident and those that wait to be stable: the stable one, the candidate, drift's pin, and
/// what requests and prequential kNN still hold.
const OTHER_SNAPSHOTS: u64 = 6;

/// In bytes.
pub(super) struct Needs {
    /// What a step changes: weights, averages, optimiser, queues.
    state: u64,
    step: u64,
    views: u64,
    /// Of one version that serves.
    snapshot: u64,
    /// Of what is made of a candidate.
    candidate: u64,
}

impl Needs {
    /// Of the encoder of `config`.
    ///
    /// # Errors
    /// One that cannot take its images.
    pub(super) fn of(config: &Config) -> Result<Self, Invalid> {
        let plan = config.encoder.architecture.plan();
        let demand = config.objective.demand(plan.feature_dim);
        let seen = Seen::of(config, &plan, &demand)?;
        let numbers = |spec: &WeightSpec| spec.shape.iter().product::<usize>();
        let moments: usize = plan.moments.iter().map(|moments| 2 * moments.channels).sum();
        let weights = (plan.weights.iter().map(numbers).sum::<usize>() + moments) as u64;
        let served = Served::most_numbers(&plan, config.input.side_px);
        let served = served.map_err(|error| unfit_input(config, &error))? as u64;

        let has_past = config.learner.alignment.weight > 0.0;
        let has_served = config.snapshot.average_momentum > 0.0;
        let averages = [demand.has_target, has_past, has_served].map(u64::from).iter().sum::<u64>();
        // The predictor of the past is a head as well.
        let hidden = if has_past { config.learner.alignment.hidden as u64 } else { 0 };
        let predictor = product([2 * plan.feature_dim as u64 + 4, hidden]);
        let heads = product([demand.head_weights, 1 + u64::from(demand.has_target)]);
        let changed = [
            product([weights, WEIGHTS_OF_AN_OPTIMIZER + averages]),
            product([heads.saturating_add(predictor), WEIGHTS_OF_AN_OPTIMIZER]),
            product([demand.kept_rows, demand.widest + 9]),
        ];
        // Shadows see views on a tape of their own, but for the served average.
        let tapes = 1 + u64::from(demand.has_target || has_past);
        let stored_bytes = if config.run.precision == Precision::Bf16 { 2 } else { F32_BYTES };
        let loss = seen.loss(&demand, demand.widest.max(hidden));
        let step = [
            product([seen.activations, stored_bytes, tapes]),
            product([weights, WEIGHTS_OF_A_STEP, F32_BYTES]),
            product([loss, TENSORS_OF_A_LOSS, F32_BYTES]),
        ];
        // Packed by whole blocks, a window's 9 taps as 16 points: near twice as much.
        let packed = 2 * weights;
        Ok(Self {
            state: product([total(changed), F32_BYTES]),
            step: total(step),
            views: product([seen.views, BATCHES_OF_VIEWS, F32_BYTES]),
            snapshot: product([packed + served, F32_BYTES]),
            candidate: product([weights, WEIGHTS_OF_A_CANDIDATE, F32_BYTES]),
        })
    }

    /// The parts that need it.
    pub(super) fn parts(&self, config: &Config) -> Vec<Part> {
        let snapshots = config.snapshot.resident as u64 + MOST_WAITING + OTHER_SNAPSHOTS;
        let part = |name, bytes, settings| Part { name, bytes, settings };
        vec![
            part(
                "training",
                self.state.saturating_add(self.step),
                "batch.images, encoder.architecture, objective, input.side_px, augment.side_share",
            ),
            part("views", self.views, "batch.images, input.side_px, augment.side_share"),
            part(
                "checkpoints",
                product([self.state, COPIES_OF_A_CHECKPOINT]),
                "encoder.architecture, objective",
            ),
            part(
                "versions that serve",
                product([snapshots, self.snapshot]).saturating_add(self.candidate),
                "snapshot.resident, encoder.architecture, input.side_px",
            ),
        ]
    }
}

/// What a step sees, in numbers.
struct Seen {
    activations: u64,
    views: u64,
    /// Views of all images.
    rows: u64,
}

impl Seen {
    fn of(config: &Config, plan: &Plan, demand: &Demand) -> Result<Self, Invalid> {
        let mut seen = Self { activations: 0, views: 0, rows: 0 };
        for group in &demand.groups {
            let side_px = group.side.px(config.view_side_px());
            let n_views = config.batch.images * group.views_per_image;
            let activations = Tape::most_numbers(plan, n_views, side_px);
            seen.activations +=
                activations.map_err(|error| unfit_view(config, group.side, &error))? as u64;
            seen.views += product([n_views as u64, 3, side_px as u64, side_px as u64]);
            seen.rows += n_views as u64;
        }
        Ok(seen)
    }

    /// Of a tensor of each shape that a loss has: each row beside each other and each that is kept, each row in a
    /// head, and columns beside each other, as in a covariance.
    fn loss(&self, demand: &Demand, widest: u64) -> u64 {
        let columns = self.rows.saturating_add(demand.kept_rows);
        total([[self.rows, columns], [self.rows, widest], [widest, widest]].map(product))
    }
}

fn total(parts: [u64; 3]) -> u64 {
    parts.into_iter().fold(0, u64::saturating_add)
}

/// Names whatever chose the side of views that the encoder does not take.
fn unfit_view(config: &Config, side: Side, error: &candle_core::Error) -> Invalid {
    let (input_px, view_px) = (config.input.side_px, config.view_side_px());
    let side_px = side.px(view_px);
    match config.objective.own_side() {
        Some((key, own)) if own == side => Invalid::new(key, side_px, taken(config, error)),
        _ if side_px == input_px => unfit_input(config, error),
        _ => {
            let share = config.augment.side_share;
            let share = share.map_or("unset".to_owned(), |share| share.to_string());
            let allowed =
                format!("such that views, of {side_px} px here, are of {}", taken(config, error));
            Invalid::new("augment.side_share", share, allowed)
        }
    }
}

fn unfit_input(config: &Config, error: &candle_core::Error) -> Invalid {
    Invalid::new("input.side_px", config.input.side_px, taken(config, error))
}

fn taken(config: &Config, error: &candle_core::Error) -> String {
    format!("a side that encoder.architecture {} takes: {error}", config.encoder.architecture)
}
