//! What activations are stored as: f32, or bf16, which keeps an f32's sign and exponent and seven bits
//! of its fraction. Every operation computes in f32; a bf16 is half the memory to pass through.

use super::isa::Isa;
use super::simd;
use std::fmt::Debug;

/// What training stores activations and their gradients as. Weights, their gradients, sums and
/// moments are f32 in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// f32.
    #[default]
    F32,
    /// bf16: half the memory, and faster where
    /// [`Isa::gains_by_bf16`](super::isa::Isa::gains_by_bf16) says so.
    Bf16,
}

/// A number as it is stored.
pub(crate) trait Element:
    Copy + Debug + Default + PartialEq + Send + Sync + 'static
{
    /// The nearest that can be stored; of two that are as near the even one. What is no number stays
    /// none.
    fn narrow(value: f32) -> Self;

    /// The same number.
    fn widen(self) -> f32;

    /// `floats` as elements; `room` is what it returned before, to be used again.
    fn store_all(floats: Vec<f32>, room: Vec<Self>) -> Vec<Self>;

    /// Floats that the functions below need beside `length` elements.
    fn scratch_len(length: usize) -> usize;

    /// Elements as floats: themselves, or in `scratch`, which is as long as [`Element::scratch_len`]
    /// says.
    fn floats<'a>(elements: &'a [Self], scratch: &'a mut [f32]) -> &'a [f32];

    /// The same, to be changed; [`Element::put_back`] follows.
    fn floats_mut<'a>(elements: &'a mut [Self], scratch: &'a mut [f32]) -> &'a mut [f32];

    /// Stores what [`Element::floats_mut`] lent.
    fn put_back(elements: &mut [Self], scratch: &[f32]);
}

impl Element for f32 {
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    fn store_all(floats: Vec<f32>, _: Vec<f32>) -> Vec<f32> {
        floats
    }

    fn scratch_len(_: usize) -> usize {
        0
    }

    fn floats<'a>(elements: &'a [f32], _: &'a mut [f32]) -> &'a [f32] {
        elements
    }

    fn floats_mut<'a>(elements: &'a mut [f32], _: &'a mut [f32]) -> &'a mut [f32] {
        elements
    }

    fn put_back(_: &mut [f32], _: &[f32]) {}
}

/// The upper half of an f32's bits.
#[derive(Clone, Copy, Debug, Default)]
#[repr(transparent)]
pub(crate) struct Bf16(u16);

impl Bf16 {
    /// Its bits.
    #[inline(always)]
    pub(super) fn bits(self) -> u16 {
        self.0
    }

    /// A word with `self` in its lower half and `next` in its upper one.
    #[inline(always)]
    pub(super) fn beside(self, next: Self) -> u32 {
        u32::from(self.0) | u32::from(next.0) << 16
    }
}

/// That of the numbers: two zeros are equal, and what is no number equals nothing.
impl PartialEq for Bf16 {
    fn eq(&self, other: &Self) -> bool {
        self.widen() == other.widen()
    }
}

impl Element for Bf16 {
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        let bits = value.to_bits();
        // Just under half of the last place, and the rest of the half where the place is odd.
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        // The bit keeps a fraction above zero, without which it would be an infinity.
        let no_number = bits >> 16 | 0x40;
        Self(if value.is_nan() { no_number } else { rounded } as u16)
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }

    fn store_all(floats: Vec<f32>, mut room: Vec<Self>) -> Vec<Self> {
        room.resize(floats.len(), Self::default());
        simd::narrow(Isa::best(), &floats, &mut room);
        room
    }

    fn scratch_len(length: usize) -> usize {
        length
    }

    fn floats<'a>(elements: &'a [Self], scratch: &'a mut [f32]) -> &'a [f32] {
        simd::widen(Isa::best(), elements, scratch);
        scratch
    }

    fn floats_mut<'a>(elements: &'a mut [Self], scratch: &'a mut [f32]) -> &'a mut [f32] {
        simd::widen(Isa::best(), elements, scratch);
        scratch
    }

    fn put_back(elements: &mut [Self], scratch: &[f32]) {
        simd::narrow(Isa::best(), scratch, elements);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Of the two bf16 around a finite number, the nearer; of two as near, the even one.
    fn nearest(value: f32) -> f32 {
        let below = value.to_bits() & 0xffff_0000;
        let [toward_zero, away] = [below, below.wrapping_add(0x1_0000)].map(f32::from_bits);
        // Past the largest one, the next power of two stands for infinity.
        let far = if away.is_infinite() { 2f64.powi(128) } else { f64::from(away).abs() };
        let size = f64::from(value).abs();
        let (to_near, to_far) = (size - f64::from(toward_zero).abs(), far - size);
        let is_even = below >> 16 & 1 == 0;
        if to_near < to_far || to_near == to_far && is_even { toward_zero } else { away }
    }

    proptest! {
        #[test]
        fn the_nearest_is_stored(bits: u32) {
            let value = f32::from_bits(bits);
            let stored = Bf16::narrow(value).widen();
            if value.is_nan() {
                prop_assert!(stored.is_nan());
            } else if value.is_infinite() {
                prop_assert_eq!(stored, value);
            } else {
                prop_assert_eq!(stored.to_bits(), nearest(value).to_bits());
            }
        }

        /// Whatever is stored already comes back as it is.
        #[test]
        fn what_is_stored_stays(half: u16) {
            let value = Bf16(half).widen();
            prop_assert!(Bf16::narrow(value).bits() == half || value.is_nan());
        }
    }

    #[test]
    fn ties_go_to_even_and_ends_stay_ends() {
        let stored = |bits: u32| u32::from(Bf16::narrow(f32::from_bits(bits)).bits());
        assert_eq!(stored(0x3f80_8000), 0x3f80, "a tie above an even place");
        assert_eq!(stored(0x3f81_8000), 0x3f82, "a tie above an odd place");
        assert_eq!(stored(0x3f80_8001), 0x3f81, "just above a tie");
        assert_eq!(stored(0x7f7f_ffff), 0x7f80, "the largest number rounds to infinity");
        assert_eq!(stored(0x8000_0001), 0x8000, "the smallest rounds to its zero");
        assert_eq!(stored(0xff80_0000), 0xff80, "an infinity");
        // Its fraction lies in the half that is cut off.
        assert!(Bf16::narrow(f32::from_bits(0x7f80_0001)).widen().is_nan());
        assert!(Bf16::narrow(f32::from_bits(0xffff_ffff)).widen().is_nan());
    }
}
