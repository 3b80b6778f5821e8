//! What a roofline is measured with: the peak of a processor, and the three products of each
//! convolution of a plan by themselves. `benches/roofline.rs` times them.

use super::convolution::Convolution;
use super::kernel::peak;
use super::kernel::tiles::Tail;
use super::sizes::{product_shape, sizes};
use crate::encoder::{Op, Plan};
use crate::ops::cpu::convolution::Shape;
use crate::ops::isa::Isa;
use candle_core::Result;

/// Adds products to sums in registers `rounds` times on the calling thread, by the best
/// instructions. Returns how many products and sums that were.
pub fn multiply_and_add(rounds: usize) -> usize {
    let (sum, operations) = peak::multiply_and_add(Isa::best(), rounds, std::hint::black_box(1.5));
    std::hint::black_box(sum);
    operations
}

/// One convolution or matrix of a plan with tensors of its shape, to be computed again and again.
pub struct Layer {
    shape: Shape,
    /// How often the plan has this shape.
    pub n_times: usize,
    convolution: Convolution<f32>,
    /// The weight as either direction reads it.
    packed: [Vec<f32>; 2],
    /// Images, results and weight: their values do not matter, but must stay finite.
    x: Vec<f32>,
    y: Vec<f32>,
    weight: Vec<f32>,
    scratch: Vec<f32>,
}

impl Layer {
    /// The layers of `plan` for `images` images of `side_px`, each shape once, in order; the images
    /// themselves get no gradient.
    ///
    /// # Errors
    /// A window that fits nowhere.
    pub fn of(plan: &Plan, images: usize, side_px: usize) -> Result<Vec<Self>> {
        let sizes = sizes(plan, images, side_px)?;
        let mut layers: Vec<Self> = vec![];
        for (index, op) in plan.ops.iter().enumerate() {
            let (Op::Convolution { input, .. } | Op::Linear { input, .. }) = *op else { continue };
            let shape = product_shape(plan, index, sizes[input.0])?;
            match layers.iter_mut().find(|layer| layer.shape == shape) {
                Some(layer) => layer.n_times += 1,
                None => layers.push(Self::new(shape, input.0 != 0)),
            }
        }
        Ok(layers)
    }

    fn new(shape: Shape, wants_images: bool) -> Self {
        let convolution = Convolution::<f32>::new(Isa::best(), shape, wants_images);
        let noise = |length: usize| -> Vec<f32> {
            (0..length).map(|i| (i * 7919 % 1009) as f32 / 504.5 - 1.0).collect()
        };
        let pixels = |sides: [usize; 2]| shape.images * sides[0] * sides[1];
        let weight = noise(shape.geometry.kernel.pow(2) * shape.channels * shape.outputs);
        let mut room = vec![0.0; convolution.packed_len()];
        let packed = [
            convolution.pack(&weight, &mut room).to_vec(),
            convolution.pack_transposed(&weight, &mut room).to_vec(),
        ];
        Self {
            n_times: 1,
            x: noise(pixels(shape.sides) * shape.channels),
            y: noise(pixels(shape.output_sides) * shape.outputs),
            scratch: vec![0.0; convolution.scratch_len()],
            weight,
            packed,
            convolution,
            shape,
        }
    }

    /// Such as "3x3, 32 to 64 at 16 px, stride 2"; the side is that of the input.
    pub fn name(&self) -> String {
        let Shape { sides, channels, outputs, geometry, .. } = self.shape;
        let (kernel, stride) = (geometry.kernel, geometry.stride);
        let stride = if stride == 1 { String::new() } else { format!(", stride {stride}") };
        format!("{kernel}x{kernel}, {channels} to {outputs} at {} px{stride}", sides[0])
    }

    /// Products and sums of each of the three; taps in the padding count, though they are left out
    /// where that saves time.
    pub fn operations(&self) -> usize {
        let Shape { images, output_sides, channels, outputs, geometry, .. } = self.shape;
        2 * images * output_sides[0] * output_sides[1] * geometry.kernel.pow(2) * channels * outputs
    }

    /// Computes the results of the images.
    pub fn forward(&mut self) {
        self.convolution.forward(&self.packed[0], &self.x, &mut self.y, Tail::default(), None);
    }

    /// Computes the gradient of the images; false if there is none.
    pub fn backward_data(&mut self) -> bool {
        let is_wanted = self.convolution.wants_images();
        if is_wanted {
            self.convolution.backward(&self.packed[1], &self.y, &mut self.x, Tail::default(), None);
        }
        is_wanted
    }

    /// Computes the gradient of the weight.
    pub fn backward_weights(&mut self) {
        self.convolution.gradient(&self.x, &self.y, &mut self.weight, &mut self.scratch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::Architecture;

    #[test]
    fn layers_are_those_of_the_plan() {
        let mut layers = Layer::of(&Architecture::SlimResnet.plan(), 2, 32).unwrap();
        let stem = &mut layers[0];
        assert_eq!((stem.name().as_str(), stem.n_times), ("3x3, 3 to 32 at 32 px", 1));
        assert_eq!(stem.operations(), 2 * 2 * 32 * 32 * 9 * 3 * 32);
        assert!(!stem.backward_data(), "nobody learns images");
        let name = "3x3, 32 to 64 at 32 px, stride 2";
        let halving = layers.iter_mut().find(|layer| layer.name() == name).unwrap();
        assert!(halving.backward_data());
        // Each stage has two blocks of two convolutions, of which three keep its shape; the first
        // stage four. Three stages have a shortcut.
        let n_layers: usize = layers.iter().map(|layer| layer.n_times).sum();
        assert_eq!((layers.len(), n_layers), (1 + 1 + 3 * 3, 1 + 16 + 3));
    }
}
