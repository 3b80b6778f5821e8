//! Lanes: the few operations that kernels are written in, for each instruction set.

#[cfg(target_arch = "x86_64")]
use super::x86;
use crate::ops::element::{Bf16, Element};
use crate::ops::isa::{Isa, Set};

impl Isa {
    /// Output channels of a tile: two vectors.
    pub(crate) fn block(self) -> usize {
        match self.set() {
            Set::Portable => 2 * Portable::WIDTH,
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => 2 * x86::Avx2::WIDTH,
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 | Set::Avx512Bf16 => 2 * x86::Avx512::<true>::WIDTH,
        }
    }

    /// Rows of a tile: as many pixels (or weights) as leave registers for the operands.
    pub(crate) fn rows(self) -> usize {
        match self.set() {
            Set::Portable => Portable::ROWS,
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => x86::Avx2::ROWS,
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 | Set::Avx512Bf16 => x86::Avx512::<true>::ROWS,
        }
    }

    /// Runs `kernel` with these instructions.
    ///
    /// # Safety
    /// The kernel's own contract.
    pub(super) unsafe fn run(self, kernel: impl Kernel) {
        match self.set() {
            // SAFETY: the caller keeps the kernel's contract; here and below.
            Set::Portable => unsafe { kernel.run::<Portable>() },
            // SAFETY: an `Isa` of this set exists only where its instructions were detected.
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => unsafe { x86::with_avx2(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => unsafe { x86::with_avx512(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Bf16 => unsafe { x86::with_avx512_bf16(kernel) },
        }
    }
}

/// Work compiled once for each unit. Implementations are `#[inline(always)]` all the way down to
/// [`Lanes`], so that the whole of it takes on the instructions of the function it ends up in.
pub(super) trait Kernel {
    /// Does it.
    ///
    /// # Safety
    /// The processor has the unit's instructions, and the kernel's own contract holds.
    unsafe fn run<L: Lanes>(self);
}

/// The f32 vectors of one instruction set.
///
/// # Safety
/// Every function needs the unit's instructions; those with a pointer need `WIDTH` numbers to be
/// readable or writable there, aligned or not.
pub(in crate::ops::native) trait Lanes: Copy {
    /// Floats in a vector.
    const WIDTH: usize;
    /// Rows of a tile of two vectors: its accumulators, the operands and nothing else fill the
    /// registers.
    const ROWS: usize;
    /// The vector.
    type Vector: Copy;
    /// As many pairs of bf16 numbers, the first in a word's lower half.
    type Words: Copy;

    /// Asks for the line of memory at `to`, which will be written; any address will do.
    unsafe fn will_write(to: *const u8);
    unsafe fn splat(value: f32) -> Self::Vector;
    unsafe fn load(from: *const f32) -> Self::Vector;
    unsafe fn store(to: *mut f32, vector: Self::Vector);
    unsafe fn add(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    unsafe fn subtract(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// a b + c, rounded once where the unit can.
    unsafe fn multiply_add(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// `value` in lanes where it is above `floor` or no number, else `floor`.
    unsafe fn at_least(value: Self::Vector, floor: Self::Vector) -> Self::Vector;
    /// `value` in lanes where `output` is above zero or no number, else zero.
    unsafe fn passed(value: Self::Vector, output: Self::Vector) -> Self::Vector;

    unsafe fn load_words(from: *const u32) -> Self::Words;
    unsafe fn splat_word(word: u32) -> Self::Words;
    /// c plus the products of both pairs in each word of a and b. How often the sum is rounded on
    /// the way, and whether numbers below f32's normal ones count, is the unit's own.
    unsafe fn dot(a: Self::Words, b: Self::Words, c: Self::Vector) -> Self::Vector;
    /// bf16 numbers by their bits.
    unsafe fn widen(from: *const u16) -> Self::Vector;
    /// [`Bf16::narrow`] of each lane; numbers below f32's normal ones may become zero.
    unsafe fn narrow(to: *mut u16, vector: Self::Vector);
    /// [`Lanes::narrow`] of both, beside each other: those of `first` in the words' lower halves.
    unsafe fn narrow_pairs(to: *mut u32, first: Self::Vector, second: Self::Vector);
}

/// Four lanes of plain Rust; the baseline of every target has vectors for them.
#[derive(Clone, Copy)]
pub(super) struct Portable;

impl Portable {
    #[inline(always)]
    fn zip(a: [f32; 4], b: [f32; 4], f: impl Fn(f32, f32) -> f32) -> [f32; 4] {
        std::array::from_fn(|lane| f(a[lane], b[lane]))
    }
}

impl Lanes for Portable {
    const WIDTH: usize = 4;
    const ROWS: usize = 6;
    type Vector = [f32; 4];
    type Words = [u32; 4];

    #[inline(always)]
    unsafe fn will_write(_: *const u8) {}
    #[inline(always)]
    unsafe fn splat(value: f32) -> [f32; 4] {
        [value; 4]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> [f32; 4] {
        // SAFETY: the trait's contract; arrays of f32 need no more alignment than f32.
        unsafe { from.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, vector: [f32; 4]) {
        // SAFETY: the trait's contract.
        unsafe { to.cast::<[f32; 4]>().write_unaligned(vector) }
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        Self::zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn subtract(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        Self::zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn multiply_add(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        Self::zip(Self::zip(a, b, |a, b| a * b), c, |product, c| product + c)
    }
    #[inline(always)]
    unsafe fn at_least(value: [f32; 4], floor: [f32; 4]) -> [f32; 4] {
        Self::zip(value, floor, |value, floor| if value < floor { floor } else { value })
    }
    #[inline(always)]
    unsafe fn passed(value: [f32; 4], output: [f32; 4]) -> [f32; 4] {
        Self::zip(value, output, |value, output| if output <= 0.0 { 0.0 } else { value })
    }

    #[inline(always)]
    unsafe fn load_words(from: *const u32) -> [u32; 4] {
        // SAFETY: the trait's contract.
        unsafe { from.cast::<[u32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn splat_word(word: u32) -> [u32; 4] {
        [word; 4]
    }
    #[inline(always)]
    unsafe fn dot(a: [u32; 4], b: [u32; 4], c: [f32; 4]) -> [f32; 4] {
        let low = |word: u32| f32::from_bits(word << 16);
        let high = |word: u32| f32::from_bits(word & 0xffff_0000);
        std::array::from_fn(|lane| {
            let (a, b) = (a[lane], b[lane]);
            c[lane] + low(a) * low(b) + high(a) * high(b)
        })
    }
    #[inline(always)]
    unsafe fn widen(from: *const u16) -> [f32; 4] {
        // SAFETY: the trait's contract.
        let halves = unsafe { from.cast::<[u16; 4]>().read_unaligned() };
        halves.map(|half| f32::from_bits(u32::from(half) << 16))
    }
    #[inline(always)]
    unsafe fn narrow(to: *mut u16, vector: [f32; 4]) {
        let halves = vector.map(|value| Bf16::narrow(value).bits());
        // SAFETY: the trait's contract.
        unsafe { to.cast::<[u16; 4]>().write_unaligned(halves) }
    }
    #[inline(always)]
    unsafe fn narrow_pairs(to: *mut u32, first: [f32; 4], second: [f32; 4]) {
        let words: [u32; 4] = std::array::from_fn(|lane| {
            Bf16::narrow(first[lane]).beside(Bf16::narrow(second[lane]))
        });
        // SAFETY: the trait's contract.
        unsafe { to.cast::<[u32; 4]>().write_unaligned(words) }
    }
}
