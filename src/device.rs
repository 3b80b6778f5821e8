//! The one place that picks where tensors live, and what computes them there.

use crate::ops::isa::Isa;
use crate::ops::native;
use anyhow::{Context, Result, anyhow, bail};
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
            Self::Cuda => open_gpu().context("run.device = \"cuda\", but no GPU can be used"),
            Self::Auto => match open_gpu() {
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

/// The first GPU, with one stream for all threads. Candle's `new_cuda` gives each thread a stream of
/// its own and nothing that orders them, but weights are made by the learner's thread and read by
/// those that serve.
fn open_gpu() -> candle_core::Result<candle_core::Device> {
    candle_core::Device::new_cuda_with_stream(0)
}

/// Where tests compute: what `SELFSTREAM_TEST_DEVICE` names, or the CPU. It is one device for all of
/// them, so that tensors of any two meet. One that was asked for and is not there fails the test.
#[cfg(test)]
pub(crate) fn under_test() -> candle_core::Device {
    static DEVICE: std::sync::OnceLock<candle_core::Device> = std::sync::OnceLock::new();
    let open = || {
        let device = match std::env::var("SELFSTREAM_TEST_DEVICE").as_deref() {
            Err(_) | Ok("" | "cpu") => Device::Cpu,
            Ok("cuda") => Device::Cuda,
            Ok(other) => panic!("SELFSTREAM_TEST_DEVICE = {other:?}, it must be cpu or cuda"),
        };
        device.open().expect("SELFSTREAM_TEST_DEVICE names a device that is there")
    };
    DEVICE.get_or_init(open).clone()
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
    /// Those and AVX-512 BF16; an error where there are none.
    Avx512Bf16,
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
            Self::Avx512Bf16 => "avx512bf16",
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

/// What training stores activations and their gradients as; weights are f32 in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bf16 where training on the CPU gains by it, else f32.
    #[default]
    Auto,
    /// f32.
    F32,
    /// bf16, on a CPU.
    Bf16,
}

impl Precision {
    /// That of training on `device`, with the instructions that kernels run with.
    ///
    /// # Errors
    /// `bf16` on a GPU.
    pub fn choose(self, device: &candle_core::Device) -> Result<native::Precision> {
        let gains = device.is_cpu() && Isa::best().gains_by_bf16();
        match self {
            Self::F32 => Ok(native::Precision::F32),
            Self::Auto if !gains => Ok(native::Precision::F32),
            Self::Bf16 if !device.is_cpu() => bail!(
                "run.precision = \"bf16\", but run.device is a GPU; there it must be \"f32\" or \
                 \"auto\", since only a CPU trains in bf16"
            ),
            Self::Auto | Self::Bf16 => {
                info!(gains_by_bf16 = gains, "training stores activations in bf16");
                Ok(native::Precision::Bf16)
            }
        }
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
            (Instructions::Avx512Bf16, "avx512bf16"),
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
    fn bf16_is_for_cpus_and_auto_takes_it_where_it_is_faster() {
        let (cpu, gains) = (candle_core::Device::Cpu, Isa::best().gains_by_bf16());
        assert_eq!(Precision::F32.choose(&cpu).unwrap(), native::Precision::F32);
        assert_eq!(Precision::Bf16.choose(&cpu).unwrap(), native::Precision::Bf16);
        let auto = Precision::Auto.choose(&cpu).unwrap();
        assert_eq!(auto == native::Precision::Bf16, gains);
        let device = under_test();
        if !device.is_cpu() {
            let error = Precision::Bf16.choose(&device).unwrap_err().to_string();
            assert!(error.contains("run.precision = \"bf16\""), "{error}");
            assert_eq!(Precision::Auto.choose(&device).unwrap(), native::Precision::F32);
        }
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
