//! What the kernels read and write: f32, or bf16 by pairs. Sums run over 32-bit words, which hold one
//! f32 or two bf16 that are neighbours along the summed dimension; so one source serves both.

use super::Lanes;
use crate::ops::element::{Bf16, Element};
use crate::ops::isa::Isa;
use crate::ops::simd;
use std::cell::Cell;
use std::thread::LocalKey;

/// A thread's buffer.
type Scratch<T> = &'static LocalKey<Cell<Vec<T>>>;

/// An [`Element`] that kernels know.
///
/// # Safety
/// Of every unsafe function: that of [`Lanes`], whose vectors they handle; those that read or write
/// elements need them at their pointer.
pub(in crate::ops::native) trait Stored: Element {
    /// Elements of a word.
    const PER_WORD: usize;
    /// A word, as weights and panels are packed.
    type Word: Copy + Default + Send + Sync + 'static;
    /// A vector of words.
    type Words<L: Lanes>: Copy;

    /// `first`, and beside it `second` where a word has room for two.
    fn join(first: Self, second: Self) -> Self::Word;
    /// [`Stored::join`] of all.
    fn join_all(isa: Isa, first: &[Self], second: &[Self], words: &mut [Self::Word]);
    /// Elements as words, where they are.
    fn as_words(elements: &[Self]) -> Option<&[Self::Word]>;
    /// Room for floats as room for words, which are as large.
    fn words_in(room: &mut [f32]) -> &mut [Self::Word];
    /// The thread's buffer for the columns of few channels.
    fn columns() -> Scratch<Self>;
    /// The thread's buffers for the gradients of a weight's panel, and for its input's.
    fn panels() -> [Scratch<Self::Word>; 2];

    /// `WIDTH` words.
    unsafe fn load_words<L: Lanes>(from: *const Self::Word) -> Self::Words<L>;
    /// The word of `PER_WORD` elements, in all lanes.
    unsafe fn splat_word<L: Lanes>(from: *const Self) -> Self::Words<L>;
    /// A word, in all lanes.
    unsafe fn splat_joined<L: Lanes>(word: Self::Word) -> Self::Words<L>;
    /// `sum` plus each product of a's and b's elements.
    unsafe fn dot<L: Lanes>(a: Self::Words<L>, b: Self::Words<L>, sum: L::Vector) -> L::Vector;
    /// `WIDTH` elements.
    unsafe fn load<L: Lanes>(from: *const Self) -> L::Vector;
    /// `WIDTH` elements, rounded.
    unsafe fn store<L: Lanes>(to: *mut Self, vector: L::Vector);
    /// `WIDTH` words of elements, rounded: `first`, and beside it `second` where a word has room for two.
    unsafe fn store_joined<L: Lanes>(to: *mut Self::Word, first: L::Vector, second: L::Vector);
}

// SAFETY of every block below: the trait's contract, which is that of `Lanes`.
impl Stored for f32 {
    const PER_WORD: usize = 1;
    type Word = f32;
    type Words<L: Lanes> = L::Vector;

    #[inline(always)]
    fn join(first: f32, _: f32) -> f32 {
        first
    }
    #[inline(always)]
    fn join_all(_: Isa, first: &[f32], _: &[f32], words: &mut [f32]) {
        words.copy_from_slice(first);
    }
    #[inline(always)]
    fn as_words(elements: &[f32]) -> Option<&[f32]> {
        Some(elements)
    }
    fn words_in(room: &mut [f32]) -> &mut [f32] {
        room
    }
    fn columns() -> Scratch<f32> {
        thread_local! {
            static COLUMNS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
        }
        &COLUMNS
    }
    fn panels() -> [Scratch<f32>; 2] {
        thread_local! {
            static GRADIENTS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
            static INPUT: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
        }
        [&GRADIENTS, &INPUT]
    }

    #[inline(always)]
    unsafe fn load_words<L: Lanes>(from: *const f32) -> L::Vector {
        // SAFETY: see above.
        unsafe { L::load(from) }
    }
    #[inline(always)]
    unsafe fn splat_word<L: Lanes>(from: *const f32) -> L::Vector {
        // SAFETY: see above.
        unsafe { L::splat(*from) }
    }
    #[inline(always)]
    unsafe fn splat_joined<L: Lanes>(word: f32) -> L::Vector {
        // SAFETY: see above.
        unsafe { L::splat(word) }
    }
    #[inline(always)]
    unsafe fn dot<L: Lanes>(a: L::Vector, b: L::Vector, sum: L::Vector) -> L::Vector {
        // SAFETY: see above.
        unsafe { L::multiply_add(a, b, sum) }
    }
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const f32) -> L::Vector {
        // SAFETY: see above.
        unsafe { L::load(from) }
    }
    #[inline(always)]
    unsafe fn store<L: Lanes>(to: *mut f32, vector: L::Vector) {
        // SAFETY: see above.
        unsafe { L::store(to, vector) }
    }
    #[inline(always)]
    unsafe fn store_joined<L: Lanes>(to: *mut f32, first: L::Vector, _: L::Vector) {
        // SAFETY: see above.
        unsafe { L::store(to, first) }
    }
}

// SAFETY of every block below: as above; a `Bf16` is its bits.
impl Stored for Bf16 {
    const PER_WORD: usize = 2;
    type Word = u32;
    type Words<L: Lanes> = L::Words;

    #[inline(always)]
    fn join(first: Bf16, second: Bf16) -> u32 {
        first.beside(second)
    }
    #[inline(always)]
    fn join_all(isa: Isa, first: &[Bf16], second: &[Bf16], words: &mut [u32]) {
        simd::join(isa, first, second, words);
    }
    #[inline(always)]
    fn as_words(_: &[Bf16]) -> Option<&[u32]> {
        None
    }
    fn words_in(room: &mut [f32]) -> &mut [u32] {
        // SAFETY: u32 has the size and alignment of f32, and all bits are a number of either.
        unsafe { std::slice::from_raw_parts_mut(room.as_mut_ptr().cast(), room.len()) }
    }
    fn columns() -> Scratch<Bf16> {
        thread_local! {
            static COLUMNS: Cell<Vec<Bf16>> = const { Cell::new(Vec::new()) };
        }
        &COLUMNS
    }
    fn panels() -> [Scratch<u32>; 2] {
        thread_local! {
            static GRADIENTS: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
            static INPUT: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
        }
        [&GRADIENTS, &INPUT]
    }

    #[inline(always)]
    unsafe fn load_words<L: Lanes>(from: *const u32) -> L::Words {
        // SAFETY: see above.
        unsafe { L::load_words(from) }
    }
    #[inline(always)]
    unsafe fn splat_word<L: Lanes>(from: *const Bf16) -> L::Words {
        // One load of 32 bits; the first element comes lowest whatever the order of bytes.
        // SAFETY: see above.
        unsafe {
            let word = from.cast::<u32>().read_unaligned();
            let turned = cfg!(target_endian = "big");
            L::splat_word(if turned { word.rotate_left(16) } else { word })
        }
    }
    #[inline(always)]
    unsafe fn splat_joined<L: Lanes>(word: u32) -> L::Words {
        // SAFETY: see above.
        unsafe { L::splat_word(word) }
    }
    #[inline(always)]
    unsafe fn dot<L: Lanes>(a: L::Words, b: L::Words, sum: L::Vector) -> L::Vector {
        // SAFETY: see above.
        unsafe { L::dot(a, b, sum) }
    }
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Bf16) -> L::Vector {
        // SAFETY: see above.
        unsafe { L::widen(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store<L: Lanes>(to: *mut Bf16, vector: L::Vector) {
        // SAFETY: see above.
        unsafe { L::narrow(to.cast(), vector) }
    }
    #[inline(always)]
    unsafe fn store_joined<L: Lanes>(to: *mut u32, first: L::Vector, second: L::Vector) {
        // SAFETY: see above.
        unsafe { L::narrow_pairs(to, first, second) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Kernel;
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// Stores floats as bf16, a vector at a time, and reads them back; and stores them as words, beside
    /// twice themselves.
    struct RoundTrip<'a> {
        from: &'a [f32],
        stored: &'a mut [Bf16],
        read: &'a mut [f32],
        words: &'a mut [u32],
    }

    impl Kernel for RoundTrip<'_> {
        #[inline(always)]
        unsafe fn run<L: Lanes>(self) {
            for start in (0..self.from.len()).step_by(L::WIDTH) {
                // SAFETY: lengths are multiples of every width.
                unsafe {
                    let to = self.stored.as_mut_ptr().add(start);
                    Bf16::store::<L>(to, L::load(self.from.as_ptr().add(start)));
                    let read = Bf16::load::<L>(to.cast_const());
                    L::store(self.read.as_mut_ptr().add(start), read);
                    let (from, words) = (
                        L::load(self.from.as_ptr().add(start)),
                        self.words.as_mut_ptr().add(start),
                    );
                    Bf16::store_joined::<L>(words, from, L::add(from, from));
                }
            }
        }
    }

    /// `sums += a . b`, word by word; a's words are made from elements, one at a time.
    struct Dot<'a> {
        a: &'a [Bf16],
        b: &'a [u32],
        sums: &'a mut [f32],
    }

    impl Kernel for Dot<'_> {
        #[inline(always)]
        unsafe fn run<L: Lanes>(self) {
            for start in (0..self.sums.len()).step_by(L::WIDTH) {
                // SAFETY: lengths are multiples of every width; `a` holds one word's elements.
                unsafe {
                    let a = Bf16::splat_word::<L>(self.a.as_ptr());
                    let b = Bf16::load_words::<L>(self.b.as_ptr().add(start));
                    let sums = self.sums.as_mut_ptr().add(start);
                    L::store(sums, Bf16::dot::<L>(a, b, L::load(sums)));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn vectors_are_stored_as_their_numbers_are(bits in vec(any::<u32>(), 32)) {
            let mut from: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
            // A tie, no numbers whose fraction lies in either half, and ends.
            let special = [0x3f81_8000, 0x3f80_8000, 0x7f80_0001, 0xffff_ffff, 0x7f7f_ffff];
            from[..5].copy_from_slice(&special.map(f32::from_bits));
            for isa in Isa::available() {
                let (mut stored, mut read) = (vec![Bf16::default(); 32], vec![0.0; 32]);
                let mut words = vec![0; 32];
                // SAFETY: 32 of each.
                unsafe {
                    let (stored, read, words) = (&mut stored, &mut read, &mut words);
                    isa.run(RoundTrip { from: &from, stored, read, words });
                }
                for (&word, &from) in words.iter().zip(&from) {
                    for (half, number) in [(word as u16, from), ((word >> 16) as u16, from + from)] {
                        let is_zero = number.is_subnormal() && half & 0x7fff == 0;
                        let nearest = Bf16::narrow(number).bits();
                        prop_assert!(is_zero || number.is_nan() || half == nearest, "{} on {}", number, isa);
                    }
                }
                for ((&from, stored), read) in from.iter().zip(stored).zip(read) {
                    let nearest = Bf16::narrow(from);
                    let is_zero = from.is_subnormal() && stored.widen() == 0.0;
                    prop_assert!(
                        is_zero || stored.bits() == nearest.bits(),
                        "{:?} of {} on {}",
                        stored,
                        from,
                        isa
                    );
                    prop_assert_eq!(read.to_bits(), stored.widen().to_bits());
                }
            }
        }

        /// Three roundings of f32 at most, of numbers no larger than the sum of all sizes.
        #[test]
        fn a_dot_adds_both_products(
            a in vec(-9.0f32..9.0, 2), b in vec(-9.0f32..9.0, 64), c in -9.0f32..9.0,
        ) {
            let [a, b] = [a, b].map(|v| v.into_iter().map(Bf16::narrow).collect::<Vec<_>>());
            let words: Vec<u32> = b.chunks(2).map(|pair| Bf16::join(pair[0], pair[1])).collect();
            for isa in Isa::available() {
                let mut sums = vec![c; 32];
                // SAFETY: 32 words and sums, and one word's elements.
                unsafe { isa.run(Dot { a: &a, b: &words, sums: &mut sums }) };
                for (sum, pair) in sums.into_iter().zip(b.chunks(2)) {
                    let product = |i: usize| f64::from(a[i].widen()) * f64::from(pair[i].widen());
                    let exact = f64::from(c) + product(0) + product(1);
                    let size = f64::from(c).abs() + product(0).abs() + product(1).abs();
                    let error = (f64::from(sum) - exact).abs();
                    prop_assert!(error <= size * 3.0 / 2f64.powi(24), "{sum}, {exact} on {isa}");
                }
            }
        }
    }

    #[test]
    fn a_dot_keeps_what_is_no_number_and_what_has_no_end() {
        for (spoilt, is_kept) in
            [(f32::NAN, f32::is_nan as fn(f32) -> bool), (f32::INFINITY, f32::is_infinite)]
        {
            for half in 0..2 {
                let mut a = [Bf16::narrow(1.0); 2];
                a[half] = Bf16::narrow(spoilt);
                let words = [Bf16::join(Bf16::narrow(2.0), Bf16::narrow(3.0)); 32];
                for isa in Isa::available() {
                    let mut sums = [1.0; 32];
                    // SAFETY: 32 words and sums, and one word's elements.
                    unsafe { isa.run(Dot { a: &a, b: &words, sums: &mut sums }) };
                    assert!(sums.into_iter().all(is_kept), "{sums:?} on {isa}");
                }
            }
        }
    }
}
