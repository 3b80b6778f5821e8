//! The one place that picks where tensors live, and what computes them there.

use crate::ops::isa::Isa;
use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};
use tracing::info;

/// Where the encoder computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// A GPU if there is one, else the CPU; says which.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The first GPU; an error if there is none.
    Cuda,
}

impl Device {
    /// The device itself.
    ///
    /// # Errors
    /// `cuda` where there is no GPU, or where the program was built without it.
    pub fn open(self) -> Result<candle_core::Device> {
        match self {
            Self::Cpu => Ok(candle_core::Device::Cpu),
            Self::Cuda => candle_core::Device::new_cuda(0)
                .context("run.device = \"cuda\", but no GPU can be used"),
            Self::Auto => match candle_core::Device::new_cuda(0) {
                Ok(device) => {
                    info!("computing on the GPU");
                    Ok(device)
                }
                Err(error) => {
                    let reason = error.to_string();
                    let reason = reason.lines().next().unwrap_or_default();
                    info!(reason, "computing on the CPU, as no GPU can be used");
                    Ok(candle_core::Device::Cpu)
                }
            },
        }
    }
}

/// The vector instructions that a CPU computes with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Instructions {
    /// The best that the processor has.
    #[default]
    Auto,
    /// The target's baseline.
    Portable,
    /// AVX2 and FMA; an error where there are none.
    Avx2,
    /// AVX-512 F and VL; an error where there are none.
    Avx512,
}

impl Instructions {
    /// Makes every kernel of the process run with them, and says which they are.
    ///
    /// # Errors
    /// Instructions that the processor lacks, or a process that computes with others already.
    pub fn choose(self) -> Result<()> {
        let name = match self {
            Self::Auto => return Ok(()),
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        };
        let isa = Isa::available()
            .into_iter()
            .find(|isa| isa.to_string() == name)
            .with_context(|| format!("run.instructions = {name:?}, which this processor lacks"))?;
        isa.choose().map_err(|other| {
            anyhow!("run.instructions = {name:?}, but the process computes with {other} already")
        })?;
        info!("kernels use {isa} instructions");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_that_kernels_run_with_can_be_chosen_and_others_are_refused_by_name() {
        let best = Isa::best().to_string();
        for (choice, name) in [
            (Instructions::Portable, "portable"),
            (Instructions::Avx2, "avx2"),
            (Instructions::Avx512, "avx512"),
        ] {
            match choice.choose() {
                Ok(()) => assert_eq!(name, best),
                Err(error) => {
                    assert_ne!(name, best);
                    assert!(error.to_string().contains(&format!("{name:?}")), "{error}");
                }
            }
        }
        assert!(Instructions::Auto.choose().is_ok());
    }

    #[test]
    fn auto_always_opens_and_cuda_fails_where_it_is_absent() {
        assert!(Device::Auto.open().is_ok());
        assert!(Device::Cpu.open().is_ok());
        if cfg!(not(feature = "cuda")) {
            let error = format!("{:#}", Device::Cuda.open().unwrap_err());
            assert!(error.contains("run.device"), "{error}");
        }
    }
}
