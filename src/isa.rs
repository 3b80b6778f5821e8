//! The instruction sets that kernels are compiled for, and which of them runs.
//!
//! The x86-64 baseline is SSE2. A plain loop inside `at_every_level` is written once, in safe code,
//! and compiled three times: as it is, for AVX2 and for AVX-512. Which one runs is decided at run
//! time by an [`Isa`], which can only be had for instructions that this processor has; that is the
//! whole safety contract of the macro. It enables no fused products, so that every instruction set
//! gives the same bits; the portable loop is the oracle of the tests.

use std::fmt;
use std::sync::OnceLock;

/// The instructions that a kernel is run with.
///
/// Invariant, on which the kernel files rely: a value other than [`Isa::PORTABLE`] exists only after
/// its instructions were detected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Set);

/// What an [`Isa`] is, for kernels to match on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Set {
    /// The target's baseline.
    Portable,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F and VL, AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// Those, and the product of pairs of bf16 numbers.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
}

/// The one that [`Isa::best`] answers with from its first call on.
static CHOSEN: OnceLock<Isa> = OnceLock::new();

impl Isa {
    /// What the target's baseline offers.
    pub const PORTABLE: Self = Self(Set::Portable);

    /// All that this processor has, best last.
    pub fn available() -> Vec<Self> {
        #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut, reason = "only x86-64 adds"))]
        let mut available = vec![Self::PORTABLE];
        #[cfg(target_arch = "x86_64")]
        {
            let has_avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if has_avx2 {
                available.push(Self(Set::Avx2));
            }
            let has_avx512 = has_avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512vl");
            if has_avx512 {
                available.push(Self(Set::Avx512));
            }
            if has_avx512
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512bf16")
            {
                available.push(Self(Set::Avx512Bf16));
            }
        }
        available
    }

    /// What kernels run with: the best there is, unless [`Isa::choose`] chose before.
    pub fn best() -> Self {
        *CHOSEN.get_or_init(|| Self::available().pop().unwrap_or(Self::PORTABLE))
    }

    /// Makes every kernel of the process run with `self`. The choice holds once; it comes too late
    /// where a kernel has run with another.
    ///
    /// # Errors
    /// What they run with already, if it differs.
    pub fn choose(self) -> Result<(), Self> {
        let chosen = *CHOSEN.get_or_init(|| self);
        if chosen == self { Ok(()) } else { Err(chosen) }
    }

    /// Whether one instruction multiplies pairs of bf16 numbers. Elsewhere they are taken apart first.
    pub fn multiplies_bf16(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.0 == Set::Avx512Bf16;
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Whether training is faster in bf16 than in f32. An AMD Zen 4 multiplies pairs of bf16 numbers as fast
    /// as it does single f32 ones. An Intel Emerald Rapids takes about half as long again for a step in bf16
    /// as in f32, with our kernels and with PyTorch's (docs/PERFORMANCE.md): its fast products of bf16 are
    /// those of AMX, which these kernels do not use.
    pub fn gains_by_bf16(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.multiplies_bf16() && is_amd();
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    pub(crate) fn set(self) -> Set {
        self.0
    }
}

/// Whether the processor's maker calls it "AuthenticAMD": leaf 0 of CPUID.
#[cfg(target_arch = "x86_64")]
fn is_amd() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0);
    [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
}

/// Its name in configuration.
impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Set::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Bf16 => "avx512bf16",
        })
    }
}

/// Compiles each safe function once per instruction set and puts an `isa: Isa` in front of its arguments.
macro_rules! at_every_level {
    ($($(#[$attribute:meta])* fn $name:ident $(<$element:ident: $bound:ident>)?
        ($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block)*) => {
        $($(#[$attribute])*
        #[expect(clippy::allow_attributes, reason = "only some of these functions are as wide")]
        #[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its buffers")]
        pub(crate) fn $name $(<$element: $bound>)? (
            isa: $crate::isa::Isa, $($argument: $type),*
        ) $(-> $result)? {
            #[inline(always)]
            fn portable $(<$element: $bound>)? ($($argument: $type),*) $(-> $result)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn avx2 $(<$element: $bound>)? ($($argument: $type),*) $(-> $result)? {
                portable($($argument),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512vl")]
            fn avx512 $(<$element: $bound>)? ($($argument: $type),*) $(-> $result)? {
                portable($($argument),*)
            }
            match isa.set() {
                $crate::isa::Set::Portable => portable($($argument),*),
                // SAFETY: an `Isa` of this set exists only where AVX2 was detected.
                #[cfg(target_arch = "x86_64")]
                $crate::isa::Set::Avx2 => unsafe { avx2($($argument),*) },
                // SAFETY: an `Isa` of this set exists only where AVX-512 F and VL were detected.
                #[cfg(target_arch = "x86_64")]
                $crate::isa::Set::Avx512 | $crate::isa::Set::Avx512Bf16 => unsafe {
                    avx512($($argument),*)
                },
            }
        })*
    };
}

pub(crate) use at_every_level;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_baseline_is_always_there_and_the_best_comes_last() {
        let available = Isa::available();
        assert_eq!(available.first(), Some(&Isa::PORTABLE));
        assert_eq!(available.last(), Some(&Isa::best()));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn bf16_is_gained_by_where_the_kernel_names_amd_and_its_instruction() {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let says = |word: &str| cpuinfo.split_whitespace().any(|found| found == word);
        let has_instructions =
            ["avx512f", "avx512vl", "avx512bw", "avx512_bf16"].map(says) == [true; 4];
        let best = *Isa::available().last().unwrap();
        assert_eq!(best.gains_by_bf16(), has_instructions && says("AuthenticAMD"));
        assert!(!Isa::PORTABLE.gains_by_bf16());
    }

    #[test]
    fn a_choice_after_the_first_kernel_is_refused_unless_it_is_the_same() {
        let best = Isa::best();
        assert_eq!(best.choose(), Ok(()));
        for other in Isa::available().into_iter().filter(|isa| *isa != best) {
            assert_eq!(other.choose(), Err(best));
        }
    }
}
