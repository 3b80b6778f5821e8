//! The vectors of x86-64: AVX2 and AVX-512.

use super::lanes::{Kernel, Lanes};
use std::arch::x86_64::*;
use std::mem::transmute;

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
    unsafe { kernel.run::<Avx512<false>>() }
}

/// # Safety
/// The processor has AVX-512 F and BF16; the kernel's own contract.
#[target_feature(enable = "avx512f,avx512bf16,avx2,fma")]
pub(super) unsafe fn with_avx512_bf16(kernel: impl Kernel) {
    // SAFETY: this function's own contract.
    unsafe { kernel.run::<Avx512<true>>() }
}

/// Eight lanes, sixteen registers.
#[derive(Clone, Copy)]
pub(super) struct Avx2;

/// Sixteen lanes, thirty-two registers; with or without AVX-512 BF16.
#[derive(Clone, Copy)]
pub(super) struct Avx512<const HAS_BF16: bool>;

// SAFETY of every block below: the trait's contract, which is the intrinsics' own.
impl Lanes for Avx2 {
    const WIDTH: usize = 8;
    const ROWS: usize = 6;
    type Vector = __m256;
    type Words = __m256i;

    #[inline(always)]
    unsafe fn will_write(to: *const u8) {
        // SAFETY: see above.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(to.cast()) }
    }
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
    unsafe fn subtract(a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_sub_ps(a, b) }
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
    #[inline(always)]
    unsafe fn load_words(from: *const u32) -> __m256i {
        // SAFETY: see above.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }
    #[inline(always)]
    unsafe fn splat_word(word: u32) -> __m256i {
        // SAFETY: see above.
        unsafe { _mm256_set1_epi32(word.cast_signed()) }
    }
    #[inline(always)]
    unsafe fn dot(a: __m256i, b: __m256i, c: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe {
            let low_a = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(a));
            let low_b = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(b));
            let upper = _mm256_set1_epi32(-0x1_0000);
            let high_a = _mm256_castsi256_ps(_mm256_and_si256(a, upper));
            let high_b = _mm256_castsi256_ps(_mm256_and_si256(b, upper));
            _mm256_fmadd_ps(high_a, high_b, _mm256_fmadd_ps(low_a, low_b, c))
        }
    }
    #[inline(always)]
    unsafe fn widen(from: *const u16) -> __m256 {
        // SAFETY: see above.
        unsafe {
            let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
        }
    }
    #[inline(always)]
    unsafe fn narrow(to: *mut u16, vector: __m256) {
        // SAFETY: see above.
        unsafe {
            let words = narrowed_256(vector);
            // Packing works within each half, whose results lie in the first and third quarter.
            let packed = _mm256_packus_epi32(words, words);
            let packed = _mm256_permute4x64_epi64::<0b10_00>(packed);
            _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(packed));
        }
    }
    #[inline(always)]
    unsafe fn narrow_pairs(to: *mut u32, first: __m256, second: __m256) {
        // SAFETY: see above.
        unsafe {
            let upper = _mm256_slli_epi32::<16>(narrowed_256(second));
            _mm256_storeu_si256(to.cast(), _mm256_or_si256(narrowed_256(first), upper));
        }
    }
}

/// The steps of `Bf16::narrow`, each in a word of its own.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn narrowed_256(vector: __m256) -> __m256i {
    // SAFETY: the contract above.
    unsafe {
        let bits = _mm256_castps_si256(vector);
        let upper = _mm256_srli_epi32::<16>(bits);
        let odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
        let half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
        let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, half));
        let no_number = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
        let is_none = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(vector, vector));
        _mm256_blendv_epi8(rounded, no_number, is_none)
    }
}

impl<const HAS_BF16: bool> Lanes for Avx512<HAS_BF16> {
    const WIDTH: usize = 16;
    const ROWS: usize = 12;
    type Vector = __m512;
    type Words = __m512i;

    #[inline(always)]
    unsafe fn will_write(to: *const u8) {
        // SAFETY: see above.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(to.cast()) }
    }
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
    unsafe fn subtract(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_sub_ps(a, b) }
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
    #[inline(always)]
    unsafe fn load_words(from: *const u32) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn splat_word(word: u32) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_set1_epi32(word.cast_signed()) }
    }
    #[inline(always)]
    unsafe fn dot(a: __m512i, b: __m512i, c: __m512) -> __m512 {
        // SAFETY: see above; the instruction is there where `HAS_BF16` says so. Both types are a
        // register of 64 bytes.
        unsafe {
            if HAS_BF16 {
                let (a, b) = (transmute::<__m512i, __m512bh>(a), transmute::<__m512i, __m512bh>(b));
                return _mm512_dpbf16_ps(c, a, b);
            }
            let low_a = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(a));
            let low_b = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(b));
            let upper = _mm512_set1_epi32(-0x1_0000);
            let high_a = _mm512_castsi512_ps(_mm512_and_si512(a, upper));
            let high_b = _mm512_castsi512_ps(_mm512_and_si512(b, upper));
            _mm512_fmadd_ps(high_a, high_b, _mm512_fmadd_ps(low_a, low_b, c))
        }
    }
    #[inline(always)]
    unsafe fn widen(from: *const u16) -> __m512 {
        // SAFETY: see above.
        unsafe {
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
        }
    }
    #[inline(always)]
    unsafe fn narrow(to: *mut u16, vector: __m512) {
        // SAFETY: see above.
        unsafe { _mm256_storeu_si256(to.cast(), Self::narrowed(vector)) }
    }
    #[inline(always)]
    unsafe fn narrow_pairs(to: *mut u32, first: __m512, second: __m512) {
        // SAFETY: see above.
        unsafe {
            let lower = _mm512_cvtepu16_epi32(Self::narrowed(first));
            let upper = _mm512_cvtepu16_epi32(Self::narrowed(second));
            _mm512_storeu_si512(to.cast(), _mm512_or_si512(lower, _mm512_slli_epi32::<16>(upper)));
        }
    }
}

impl<const HAS_BF16: bool> Avx512<HAS_BF16> {
    /// # Safety
    /// The processor has AVX-512 F, and BF16 where `HAS_BF16` says so.
    #[inline(always)]
    unsafe fn narrowed(vector: __m512) -> __m256i {
        // SAFETY: the contract above. Both types are a register of 32 bytes.
        unsafe {
            if HAS_BF16 {
                return transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(vector));
            }
            // The steps of `Bf16::narrow`.
            let bits = _mm512_castps_si512(vector);
            let upper = _mm512_srli_epi32::<16>(bits);
            let odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
            let half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
            let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, half));
            let no_number = _mm512_or_si512(upper, _mm512_set1_epi32(0x40));
            let is_none = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(vector, vector);
            _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, is_none, no_number))
        }
    }
}
