//! The register tile of the matrices: R rows by a block of outputs.

#![expect(
    clippy::needless_range_loop,
    reason = "counted loops over arrays unroll, which keeps a tile in registers"
)]

use super::super::Lanes;
use super::super::stored::Stored;

/// `to [R, block]`: R rows of `from`, `row` apart, times the `words` rows of `weights`.
///
/// # Safety
/// All of that can be read and written; the processor has the unit's instructions.
#[inline(always)]
pub(super) unsafe fn multiply<L: Lanes, E: Stored, const R: usize>(
    from: *const E,
    row: usize,
    weights: *const E::Word,
    words: usize,
    to: *mut f32,
) {
    // SAFETY: the contract above.
    unsafe {
        let mut sums = [[L::splat(0.0); 2]; R];
        let mut weight = weights;
        let mut rows = [from; R];
        for nth in 0..R {
            rows[nth] = from.add(nth * row);
        }
        for word in 0..words {
            let w = [E::load_words::<L>(weight), E::load_words::<L>(weight.add(L::WIDTH))];
            for nth in 0..R {
                let x = E::splat_word::<L>(rows[nth].add(word * E::PER_WORD));
                sums[nth][0] = E::dot::<L>(x, w[0], sums[nth][0]);
                sums[nth][1] = E::dot::<L>(x, w[1], sums[nth][1]);
            }
            weight = weight.add(2 * L::WIDTH);
        }
        for nth in 0..R {
            let to = to.add(nth * 2 * L::WIDTH);
            L::store(to, sums[nth][0]);
            L::store(to.add(L::WIDTH), sums[nth][1]);
        }
    }
}
