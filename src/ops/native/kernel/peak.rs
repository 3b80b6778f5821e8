//! How fast the processor can be: products and sums on registers alone.

use super::{Kernel, Lanes};
use crate::ops::isa::Isa;

/// Chains of sums, none of which waits for another: as many as a tile's, and more than the latency
/// times the units of any processor these kernels know (4 cycles, 2 units).
const CHAINS: usize = 12;

/// Adds `factor * factor` to every lane of [`CHAINS`] vectors `rounds` times; returns the lanes' sum
/// and how many products and sums that were.
pub(in crate::ops::native) fn multiply_and_add(
    isa: Isa,
    rounds: usize,
    factor: f32,
) -> (f32, usize) {
    let mut lanes = [0.0; CHAINS * 16];
    // SAFETY: `lanes` has room for as many vectors of up to 16 floats.
    unsafe { isa.run(Chains { rounds, factor, lanes: &mut lanes }) };
    (lanes.iter().sum(), 2 * rounds * CHAINS * isa.block() / 2)
}

struct Chains<'a> {
    rounds: usize,
    factor: f32,
    lanes: &'a mut [f32; CHAINS * 16],
}

impl Kernel for Chains<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: `multiply_and_add`.
        unsafe {
            let factor = L::splat(self.factor);
            let mut totals = [L::splat(0.0); CHAINS];
            for _ in 0..self.rounds {
                for total in &mut totals {
                    *total = L::multiply_add(factor, factor, *total);
                }
            }
            for (chain, total) in totals.into_iter().enumerate() {
                L::store(self.lanes.as_mut_ptr().add(chain * L::WIDTH), total);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lane_adds_the_square_in_every_round() {
        for isa in Isa::available() {
            let lanes = CHAINS * isa.block() / 2;
            let (sum, operations) = multiply_and_add(isa, 7, 3.0);
            assert_eq!(sum, (7 * 9 * lanes) as f32, "{isa:?}");
            assert_eq!(operations, 2 * 7 * lanes, "{isa:?}");
        }
    }
}
