//! How long a training step needs each value of its plan.
//!
//! The backward pass reads most of what the forward pass made. What a norm or a GELU made is let go after its
//! last reader and made again from its input, which is kept anyway: one more pass over memory for a third to a
//! half of it, or none where a GELU's is made beside its gradient (Chen et al. 2016, arXiv 1604.06174, section
//! 4, and Bulò et al. 2018, arXiv 1712.02616, for batch norm).

use crate::encoder::{Op, Plan, Value};

/// Values by the operation of whose pass they are let go or made again.
pub(super) struct Lifetimes {
    /// Let go after the operation has run.
    pub(super) let_go: Vec<Vec<usize>>,
    /// Made again before the operation's gradients are pulled.
    pub(super) made_again: Vec<Vec<usize>>,
    /// Whether each value is made again beside its own gradient, by the one product that reads it: the GELU's
    /// gradient is pulled in the same pass.
    pub(super) made_beside: Vec<bool>,
    /// Let go after the operation's gradients have been pulled.
    pub(super) done: Vec<Vec<usize>>,
}

impl Lifetimes {
    pub(super) fn new(plan: &Plan) -> Self {
        let none = || plan.ops.iter().map(|_| vec![]).collect::<Vec<_>>();
        let made_beside = (0..=plan.ops.len()).map(|value| is_made_beside(plan, value)).collect();
        let mut this = Self { let_go: none(), made_again: none(), made_beside, done: none() };
        // The images are the caller's.
        for value in 1..=plan.ops.len() {
            let wanted = wanted(plan, value);
            let last_reader = readers(plan, value).last();
            match (wanted.iter().min(), wanted.iter().max()) {
                (Some(&first), Some(&last)) => {
                    this.done[first].push(value);
                    if let Some(reader) = last_reader.filter(|_| is_cheap(plan, value)) {
                        this.let_go[reader].push(value);
                        if !this.made_beside[value] {
                            this.made_again[last].push(value);
                        }
                    }
                }
                // The features are for the caller to read until the backward pass.
                _ => match last_reader {
                    Some(reader) => this.let_go[reader].push(value),
                    None => this.done[value - 1].push(value),
                },
            }
        }
        this
    }
}

fn readers(plan: &Plan, value: usize) -> impl Iterator<Item = usize> {
    let ops = plan.ops.iter().enumerate();
    ops.filter(move |(_, op)| op.reads().any(|read| read == Value(value))).map(|(index, _)| index)
}

/// The operations whose gradients are made from `value`.
fn wanted(plan: &Plan, value: usize) -> Vec<usize> {
    let mut wanted: Vec<usize> =
        readers(plan, value).filter(|&reader| is_pulled_by(&plan.ops[reader], value)).collect();
    match plan.ops[value - 1] {
        // Its sign is the rectifier's mask, which the last to add to its gradient applies.
        Op::BatchNorm { relu: true, .. } => wanted.extend(readers(plan, value).next()),
        Op::MaxPool { .. } => wanted.push(value - 1),
        _ => {}
    }
    wanted
}

/// Whether the gradients of `op` depend on the `value` that it reads.
fn is_pulled_by(op: &Op, value: usize) -> bool {
    match *op {
        Op::Convolution { input, .. }
        | Op::BatchNorm { input, .. }
        | Op::MaxPool { input }
        | Op::Linear { input, .. }
        | Op::LayerNorm { input, .. }
        | Op::Gelu { input }
        | Op::Attention { input, .. } => input == Value(value),
        Op::GlobalAveragePool { .. }
        | Op::Positions { .. }
        | Op::Tokens { .. }
        | Op::FirstPixel { .. } => false,
    }
}

/// Whether `value` is one pass over memory away from a value that is kept.
fn is_cheap(plan: &Plan, value: usize) -> bool {
    let made_from = match plan.ops[value - 1] {
        Op::BatchNorm { input, residual: None, .. }
        | Op::LayerNorm { input, .. }
        | Op::Gelu { input } => input,
        _ => return false,
    };
    made_from != plan.images() && !is_cheap(plan, made_from.0)
}

/// Whether `value` is a GELU's that one product reads and nothing else.
fn is_made_beside(plan: &Plan, value: usize) -> bool {
    let is_gelu = value > 0 && matches!(plan.ops[value - 1], Op::Gelu { .. });
    let mut readers = readers(plan, value).map(|reader| &plan.ops[reader]);
    let is_product = matches!(readers.next(), Some(Op::Linear { input, .. }) if input.0 == value);
    is_gelu && is_cheap(plan, value) && is_product && readers.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::Architecture;

    /// Plays a step by the lifetimes: whatever an operation reads is there.
    #[test]
    fn every_value_is_there_when_it_is_read_and_gone_after_the_step() {
        for architecture in Architecture::ALL {
            let plan = architecture.plan();
            let lifetimes = Lifetimes::new(&plan);
            let mut is_held = vec![false; plan.ops.len() + 1];
            is_held[0] = true;
            for (index, op) in plan.ops.iter().enumerate() {
                assert!(op.reads().all(|Value(value)| is_held[value]), "{architecture}: {op:?}");
                is_held[index + 1] = true;
                lifetimes.let_go[index].iter().for_each(|&value| is_held[value] = false);
            }
            assert!(is_held[plan.ops.len()], "{architecture}: its features");
            for index in (0..plan.ops.len()).rev() {
                for &value in &lifetimes.made_again[index] {
                    let mut reads = plan.ops[value - 1].reads();
                    assert!(!is_held[value] && reads.all(|Value(read)| is_held[read]));
                    is_held[value] = true;
                }
                for Value(value) in plan.ops[index].reads().filter(|value| value.0 > 0) {
                    let is_read = wanted(&plan, value).contains(&index);
                    if lifetimes.made_beside[value] {
                        let made_from =
                            plan.ops[value - 1].reads().all(|Value(read)| is_held[read]);
                        assert!(!is_held[value] && made_from, "{architecture}: value {value}");
                        continue;
                    }
                    assert!(!is_read || is_held[value], "{architecture}: value {value}");
                }
                lifetimes.done[index].iter().for_each(|&value| is_held[value] = false);
            }
            assert!(is_held[1..].iter().all(|is_held| !is_held), "{architecture}");
        }
    }

    #[test]
    fn norms_without_a_residual_and_gelus_are_not_kept() {
        let plan = Architecture::SlimResnet.plan();
        let lifetimes = Lifetimes::new(&plan);
        let made_again = lifetimes.made_again.iter().flatten().count();
        // The stem's norm and the first of each block; nobody reads a shortcut's norm again.
        assert_eq!(made_again, 1 + 8);
        assert_eq!(lifetimes.let_go.iter().flatten().count(), made_again + 3);
    }
}
