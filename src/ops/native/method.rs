//! How the outputs of a convolution are computed: tap by tap, or by Winograd's fewer products.

use super::indirection::Route;
use super::kernel::stored::Stored;
use super::kernel::tiles::{self, Input, Tail};
use super::kernel::winograd::{self, Winograd};
use super::sums::Sums;
use super::winograd::Grid;
use crate::ops::isa::Isa;

/// The way, laid out for a shape of images.
pub(super) enum Method {
    /// Tap by tap; over columns where the input is gathered.
    Taps(Box<Route>),
    /// By fewer products.
    Winograd(Grid),
}

impl Method {
    /// The kernel of this way from `channels` to `outputs`, with packed weights.
    pub(super) fn with<'a, E: Stored>(
        &'a self,
        isa: Isa,
        [channels, outputs]: [usize; 2],
        weights: &'a [E::Word],
        zeros: &'a [E],
    ) -> Kernel<'a, E> {
        match self {
            Self::Taps(route) => {
                Kernel::Taps(tiles::Convolution { isa, route, channels, outputs, weights, zeros })
            }
            Self::Winograd(grid) => {
                Kernel::Winograd(Winograd { isa, grid, channels, outputs, weights })
            }
        }
    }
}

/// A method with its weights.
pub(super) enum Kernel<'a, E: Stored> {
    Taps(tiles::Convolution<'a, E>),
    Winograd(Winograd<'a, E>),
}

impl<E: Stored> Kernel<'_, E> {
    fn shape(&self) -> (Isa, usize) {
        match self {
            Self::Taps(kernel) => (kernel.isa, kernel.outputs),
            Self::Winograd(kernel) => (kernel.isa, kernel.outputs),
        }
    }

    /// Floats of its sums.
    pub(super) fn sums_len(&self) -> usize {
        match self {
            Self::Taps(kernel) => kernel.sums_len(),
            Self::Winograd(kernel) => kernel.sums_len(),
        }
    }

    /// Writes `output`, finished by `tail`, and its sums where they are asked for.
    pub(super) fn run(
        &self,
        input: Input<'_, E>,
        output: &mut [E],
        tail: Tail<'_, E>,
        mut sums: Option<&mut Sums>,
    ) {
        let length = self.sums_len();
        let parts = match &mut sums {
            Some(sums) => &mut sums.parts[..length],
            None => &mut [],
        };
        match (self, input) {
            (Self::Winograd(kernel), Input::Images(images)) => {
                winograd::convolve(kernel, images, output, tail, parts);
            }
            (Self::Taps(kernel), input) => tiles::convolve(kernel, input, output, tail, parts),
            (Self::Winograd(_), Input::Columns(_)) => unreachable!("too few channels to be fast"),
        }
        if let Some(sums) = sums {
            let (isa, outputs) = self.shape();
            sums.add_up(outputs, outputs.next_multiple_of(isa.block()), length);
        }
    }
}
