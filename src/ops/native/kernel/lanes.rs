//! Lanes: the few operations that kernels are written in, for each instruction set.

use crate::ops::isa::{Isa, Set};

impl Isa {
    /// Output channels of a tile: two vectors.
    pub(crate) fn block(self) -> usize {
        match self.set() {
            Set::Portable => 2 * Portable::WIDTH,
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => 2 * x86::Avx2::WIDTH,
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => 2 * x86::Avx512::WIDTH,
        }
    }

    /// Rows of a tile: as many pixels (or weights) as leave registers for the operands.
    pub(crate) fn rows(self) -> usize {
        match self.set() {
            Set::Portable => Portable::ROWS,
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => x86::Avx2::ROWS,
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => x86::Avx512::ROWS,
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
/// Every function needs the unit's instructions; `load` and `store` need `WIDTH` floats to be
/// readable or writable at their pointer, which may be unaligned.
pub(super) trait Lanes: Copy {
    /// Floats in a vector.
    const WIDTH: usize;
    /// Rows of a tile of two vectors: its accumulators, the operands and nothing else fill the
    /// registers.
    const ROWS: usize;
    /// The vector.
    type Vector: Copy;

    unsafe fn splat(value: f32) -> Self::Vector;
    unsafe fn load(from: *const f32) -> Self::Vector;
    unsafe fn store(to: *mut f32, vector: Self::Vector);
    unsafe fn add(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// a b + c, rounded once where the unit can.
    unsafe fn multiply_add(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// `value` in lanes where it is above `floor` or no number, else `floor`.
    unsafe fn at_least(value: Self::Vector, floor: Self::Vector) -> Self::Vector;
    /// `value` in lanes where `output` is above zero or no number, else zero.
    unsafe fn passed(value: Self::Vector, output: Self::Vector) -> Self::Vector;
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
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Kernel, Lanes};
    use std::arch::x86_64::*;

    /// # Safety
    /// The processor has AVX2 and FMA; the kernel's own contract.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn with_avx2(kernel: impl Kernel) {
        // SAFETY: this function's own contract.
        unsafe { kernel.run::<Avx2>() }
    }

    /// # Safety
    /// The processor has AVX-512 F; the kernel's own contract.
    #[target_feature(enable = "avx512f,avx2,fma")]
    pub(super) unsafe fn with_avx512(kernel: impl Kernel) {
        // SAFETY: this function's own contract.
        unsafe { kernel.run::<Avx512>() }
    }

    /// Eight lanes, sixteen registers.
    #[derive(Clone, Copy)]
    pub(super) struct Avx2;

    /// Sixteen lanes, thirty-two registers.
    #[derive(Clone, Copy)]
    pub(super) struct Avx512;

    // SAFETY of every block below: the trait's contract, which is the intrinsics' own.
    impl Lanes for Avx2 {
        const WIDTH: usize = 8;
        const ROWS: usize = 6;
        type Vector = __m256;

        #[inline(always)]
        unsafe fn splat(value: f32) -> __m256 {
            // SAFETY: see above.
            unsafe { _mm256_set1_ps(value) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> __m256 {
            // SAFETY: see above.
            unsafe { _mm256_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn store(to: *mut f32, vector: __m256) {
            // SAFETY: see above.
            unsafe { _mm256_storeu_ps(to, vector) }
        }
        #[inline(always)]
        unsafe fn add(a: __m256, b: __m256) -> __m256 {
            // SAFETY: see above.
            unsafe { _mm256_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn multiply_add(a: __m256, b: __m256, c: __m256) -> __m256 {
            // SAFETY: see above.
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn at_least(value: __m256, floor: __m256) -> __m256 {
            // The instruction returns its second operand if either is no number.
            // SAFETY: see above.
            unsafe { _mm256_max_ps(floor, value) }
        }
        #[inline(always)]
        unsafe fn passed(value: __m256, output: __m256) -> __m256 {
            // SAFETY: see above.
            unsafe {
                let passes = _mm256_cmp_ps::<_CMP_NLE_UQ>(output, _mm256_setzero_ps());
                _mm256_and_ps(value, passes)
            }
        }
    }

    impl Lanes for Avx512 {
        const WIDTH: usize = 16;
        const ROWS: usize = 12;
        type Vector = __m512;

        #[inline(always)]
        unsafe fn splat(value: f32) -> __m512 {
            // SAFETY: see above.
            unsafe { _mm512_set1_ps(value) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> __m512 {
            // SAFETY: see above.
            unsafe { _mm512_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn store(to: *mut f32, vector: __m512) {
            // SAFETY: see above.
            unsafe { _mm512_storeu_ps(to, vector) }
        }
        #[inline(always)]
        unsafe fn add(a: __m512, b: __m512) -> __m512 {
            // SAFETY: see above.
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn multiply_add(a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: see above.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn at_least(value: __m512, floor: __m512) -> __m512 {
            // The instruction returns its second operand if either is no number.
            // SAFETY: see above.
            unsafe { _mm512_max_ps(floor, value) }
        }
        #[inline(always)]
        unsafe fn passed(value: __m512, output: __m512) -> __m512 {
            // SAFETY: see above.
            unsafe {
                let passes = _mm512_cmp_ps_mask::<_CMP_NLE_UQ>(output, _mm512_setzero_ps());
                _mm512_maskz_mov_ps(passes, value)
            }
        }
    }
}
