//! Between f32 and what is stored.

use crate::isa::at_every_level;
use crate::ops::element::{Bf16, Element};

at_every_level! {
    /// The words of `first` with `second` beside it.
    fn join(first: &[Bf16], second: &[Bf16], words: &mut [u32]) {
        for (word, (&first, &second)) in words.iter_mut().zip(first.iter().zip(second)) {
            *word = first.beside(second);
        }
    }

    /// The nearest that can be stored, elementwise.
    fn narrow<E: Element>(from: &[f32], to: &mut [E]) {
        for (to, &from) in to.iter_mut().zip(from) {
            *to = E::narrow(from);
        }
    }

    /// The same numbers, elementwise.
    fn widen<E: Element>(from: &[E], to: &mut [f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = from.widen();
        }
    }

    /// `sum += values`, elementwise.
    fn accumulate<E: Element>(sum: &mut [E], values: &[E]) {
        for (sum, value) in sum.iter_mut().zip(values) {
            *sum = E::narrow(sum.widen() + value.widen());
        }
    }
}
