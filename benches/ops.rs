//! Forward and backward of the slim residual network's layers, 128 images of 32 px: the counter is
//! floating-point operations, so `Gitem/s` reads as GF/s. Beside other work the fastest sample is
//! the figure to compare.

use candle_core::{Device, Tensor, Var};
use divan::Bencher;
use divan::counter::ItemsCount;
use selfstream::ops::Geometry;
use selfstream::ops::candle::{Normalisation, batch_norm, convolution};

const IMAGES: usize = 128;
const THREADS: [usize; 2] = [1, 2];

/// (side, channels, outputs, geometry)
type Layer = (usize, usize, usize, Geometry);

const fn square(kernel: usize, stride: usize) -> Geometry {
    Geometry { kernel, stride, padding: kernel / 2 }
}

const LAYERS: [(&str, Layer); 9] = [
    ("3 to 32 at 32", (32, 3, 32, square(3, 1))),
    ("32 to 32 at 32", (32, 32, 32, square(3, 1))),
    ("32 to 64 at 32, stride 2", (32, 32, 64, square(3, 2))),
    ("64 to 64 at 16", (16, 64, 64, square(3, 1))),
    ("64 to 128 at 16, stride 2", (16, 64, 128, square(3, 2))),
    ("64 to 128 at 16, 1x1, stride 2", (16, 64, 128, square(1, 2))),
    ("128 to 128 at 8", (8, 128, 128, square(3, 1))),
    ("128 to 256 at 8, stride 2", (8, 128, 256, square(3, 2))),
    ("256 to 256 at 4", (4, 256, 256, square(3, 1))),
];

fn pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool starts")
}

fn noise(shape: &[usize]) -> Tensor {
    let numbers = (0..shape.iter().product::<usize>()).map(|i| (i * 7919 % 1009) as f32 / 504.5);
    let values: Vec<f32> = numbers.map(|number| number - 1.0).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).expect("as many values as the shape has")
}

/// One convolution, forward and backward; the stem's images (3 channels) need no gradient.
#[divan::bench(args = LAYERS.map(|layer| layer.0), consts = THREADS)]
fn convolution_step<const THREAD_COUNT: usize>(bencher: Bencher<'_, '_>, name: &str) {
    let (_, (side, channels, outputs, geometry)) =
        LAYERS.into_iter().find(|layer| layer.0 == name).expect("a name of the table");
    let x = noise(&[IMAGES, side, side, channels]);
    let x = if channels == 3 { x } else { Var::from_tensor(&x).expect("f32").into_inner() };
    let weight = noise(&[geometry.kernel, geometry.kernel, channels, outputs]);
    let weight = Var::from_tensor(&weight).expect("f32");
    let output_side = geometry.output_side(side).expect("it fits");
    let products = IMAGES * output_side.pow(2) * geometry.kernel.pow(2) * channels * outputs;
    let passes = if channels == 3 { 2 } else { 3 };
    let pool = pool(THREAD_COUNT);
    bencher.counter(ItemsCount::new(2 * products * passes)).bench_local(|| {
        pool.install(|| {
            let y = convolution(&x, weight.as_tensor(), geometry)?;
            y.sum_all()?.backward()
        })
    });
}

/// One normalisation with residual and rectifier, forward and backward, of the first stage.
#[divan::bench(consts = THREADS)]
fn batch_norm_step<const THREAD_COUNT: usize>(bencher: Bencher<'_, '_>) {
    let shape = [IMAGES, 32, 32, 32];
    let var = |shape: &[usize]| Var::from_tensor(&noise(shape)).expect("f32").into_inner();
    let (x, residual, gamma, beta) = (var(&shape), var(&shape), var(&[32]), var(&[32]));
    let how = Normalisation { relu: true, groups: 1, epsilon: 1e-5 };
    let pool = pool(THREAD_COUNT);
    bencher.counter(ItemsCount::new(x.elem_count())).bench_local(|| {
        pool.install(|| {
            let (y, _) = batch_norm(&x, &gamma, &beta, Some(&residual), how)?;
            y.sum_all()?.backward()
        })
    });
}
