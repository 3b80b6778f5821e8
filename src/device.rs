//! The one place that picks where tensors live.

use anyhow::{Context, Result};
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

#[cfg(test)]
mod tests {
    use super::*;

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
