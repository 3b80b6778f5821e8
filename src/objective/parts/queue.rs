//! A queue of past projections, each with the image it belongs to: MoCo's negatives (arXiv
//! 1911.05722, section 3.1), or a memory bank (arXiv 1805.01978, section 3.2).

use super::rows::EXCLUDED;
use crate::encoder::{Array, NamedArrays};
use crate::seed::{self, Purpose};
use candle_core::{DType, Device, Result, Tensor, bail};
use rand::RngExt;

/// The seed stream of random rows; the encoder's is 0 and the heads' 1.
const QUEUE_STREAM: u64 = 2;
/// Names in checkpoints. Hashes and fingerprints are kept in parts of 16 bits, which f32 holds exactly, a
/// fingerprint behind whether there is one.
const ROWS: &str = "queue.rows";
const IDS: &str = "queue.ids";
const FINGERPRINTS: &str = "queue.fingerprints";
const NEXT: &str = "queue.next";

/// An image, as a queue knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image {
    /// The hash of its origin.
    pub id: u64,
    /// What it looks like, where that was asked for.
    pub fingerprint: Option<u64>,
}

/// An image that no row belongs to.
const NOBODY: Image = Image { id: u64::MAX, fingerprint: None };

/// `K` rows of unit length; new ones replace the oldest.
#[derive(Debug)]
pub struct Queue {
    rows: Tensor,
    images: Vec<Image>,
    next: usize,
}

impl Queue {
    /// `[len, width]` random rows that belong to no image, as MoCo's queue begins.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn random([len, width]: [usize; 2], seed: u64, device: &Device) -> Result<Self> {
        let mut rng = seed::rng(seed, Purpose::Init, &[QUEUE_STREAM]);
        let uniform = (0..len * width).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect();
        let rows = super::rows::normalise(&Tensor::from_vec(uniform, (len, width), device)?)?;
        Ok(Self { rows, images: vec![NOBODY; len], next: 0 })
    }

    /// `[len, width]` rows of zeros that belong to no image.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn empty([len, width]: [usize; 2], device: &Device) -> Result<Self> {
        let rows = Tensor::zeros((len, width), DType::F32, device)?;
        Ok(Self { rows, images: vec![NOBODY; len], next: 0 })
    }

    /// Every row, `[K, P]`.
    pub fn rows(&self) -> &Tensor {
        &self.rows
    }

    /// Where the row of image `id` is, if one is held.
    pub fn find(&self, id: u64) -> Option<usize> {
        self.images.iter().position(|held| held.id == id)
    }

    /// What the image of each row looks like.
    pub fn fingerprints(&self) -> Vec<Option<u64>> {
        self.images.iter().map(|image| image.fingerprint).collect()
    }

    /// Appends `rows [M, P]` of `images`, in place of the oldest.
    ///
    /// # Errors
    /// Another number of images than rows; rows of another length.
    pub fn push(&mut self, rows: &Tensor, images: &[Image]) -> Result<()> {
        let (n_rows, _) = rows.dims2()?;
        if n_rows != images.len() {
            bail!("{n_rows} rows of {} images can't be queued", images.len())
        }
        // Of more rows than fit, the last ones would overwrite the first.
        let mut begin = n_rows.saturating_sub(self.images.len());
        let rows = rows.detach();
        while begin < n_rows {
            let len = (n_rows - begin).min(self.images.len() - self.next);
            self.write(&rows.narrow(0, begin, len)?, &images[begin..begin + len], self.next)?;
            self.next = (self.next + len) % self.images.len();
            begin += len;
        }
        Ok(())
    }

    /// Replaces the row at `at` by `row [1, P]`.
    ///
    /// # Errors
    /// A place beyond the end; a row of another length.
    pub fn replace(&mut self, at: usize, row: &Tensor) -> Result<()> {
        self.write(&row.detach(), &[self.images[at]], at)
    }

    fn write(&mut self, rows: &Tensor, images: &[Image], at: usize) -> Result<()> {
        // A copy: the rows may share their memory with what is written, or be a view.
        self.rows.slice_set(&rows.copy()?.contiguous()?, 0, at)?;
        self.images[at..at + images.len()].copy_from_slice(images);
        Ok(())
    }

    /// `[M, K]` that, added to logits, excludes where a row's image is that of a query.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn exclude_own(&self, query_ids: &[u64]) -> Result<Tensor> {
        self.exclude(query_ids, |query, held| query == held)
    }

    /// [`Queue::exclude_own`] that excludes rows of no image as well.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn exclude_own_and_empty(&self, query_ids: &[u64]) -> Result<Tensor> {
        self.exclude(query_ids, |query, held| query == held || held == NOBODY.id)
    }

    fn exclude(&self, query_ids: &[u64], is_out: impl Fn(u64, u64) -> bool) -> Result<Tensor> {
        let mask = query_ids.iter().flat_map(|query| {
            let is_out = &is_out;
            self.images
                .iter()
                .map(move |held| if is_out(*query, held.id) { EXCLUDED as f32 } else { 0.0 })
        });
        let shape = (query_ids.len(), self.images.len());
        Tensor::from_vec(mask.collect(), shape, self.rows.device())
    }

    /// Everything that it is, by name.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn to_arrays(&self) -> Result<NamedArrays> {
        let ids = self.images.iter().flat_map(|image| parts(image.id)).collect();
        let fingerprints = self.images.iter().flat_map(|image| match image.fingerprint {
            None => [0.0; 5],
            Some(bits) => {
                let [a, b, c, d] = parts(bits);
                [1.0, a, b, c, d]
            }
        });
        let fingerprints = fingerprints.collect();
        let n_rows = self.images.len();
        Ok([
            (ROWS.to_owned(), Array::from_tensor(&self.rows)?),
            (IDS.to_owned(), Array { shape: vec![n_rows, 4], values: ids }),
            (FINGERPRINTS.to_owned(), Array { shape: vec![n_rows, 5], values: fingerprints }),
            (NEXT.to_owned(), Array { shape: vec![1], values: vec![self.next as f32] }),
        ]
        .into())
    }

    /// The inverse. Checkpoints from before there were fingerprints have none, and are of images like no other.
    ///
    /// # Errors
    /// An array that is missing or of another size, by name.
    pub fn load_arrays(&mut self, arrays: &NamedArrays) -> Result<()> {
        let find = |name: &str, shape: &[usize]| match arrays.get(name) {
            None => bail!("array {name} is missing"),
            Some(array) if array.shape != shape => {
                bail!("array {name} has shape {:?}, expected {shape:?}", array.shape)
            }
            Some(array) => Ok(array),
        };
        let rows = find(ROWS, self.rows.dims())?.to_tensor(self.rows.device())?;
        let ids = find(IDS, &[self.images.len(), 4])?;
        let fingerprints = match arrays.contains_key(FINGERPRINTS) {
            false => &vec![0.0; 5 * self.images.len()],
            true => &find(FINGERPRINTS, &[self.images.len(), 5])?.values,
        };
        let next = find(NEXT, &[1])?.values[0] as usize;
        let fingerprint = |parts: &[f32]| (parts[0] > 0.0).then(|| whole(&parts[1..]));
        let images = ids.values.chunks_exact(4).zip(fingerprints.chunks_exact(5));
        let image = |(id, parts)| Image { id: whole(id), fingerprint: fingerprint(parts) };
        self.images = images.map(image).collect();
        (self.rows, self.next) = (rows, next % self.images.len());
        Ok(())
    }
}

/// `bits` in parts of 16, the lowest first.
fn parts(bits: u64) -> [f32; 4] {
    [0, 16, 32, 48].map(|from| (bits >> from & 0xffff) as f32)
}

/// The inverse.
fn whole(parts: &[f32]) -> u64 {
    parts.iter().rev().fold(0, |bits, part| bits << 16 | *part as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn image(id: u64) -> Image {
        Image { id, fingerprint: id.is_multiple_of(2).then_some(id << 40) }
    }

    fn rows(first: usize, n_rows: usize) -> Tensor {
        let values = (0..2 * n_rows).map(|i| (2 * first + i) as f32).collect();
        Tensor::from_vec(values, (n_rows, 2), &Device::Cpu).unwrap()
    }

    proptest! {
        /// It holds what a list holds whose front is dropped.
        #[test]
        fn it_holds_the_newest_rows_and_their_images(
            len in 1usize..12, pushes in prop::collection::vec(0usize..20, 0..8),
        ) {
            let mut queue = Queue::empty([len, 2], &Device::Cpu).unwrap();
            let mut pushed = 0;
            for n_rows in pushes {
                let images: Vec<Image> =
                    (pushed..pushed + n_rows).map(|id| image(id as u64)).collect();
                if n_rows > 0 {
                    queue.push(&rows(pushed, n_rows), &images).unwrap();
                }
                pushed += n_rows;
            }
            let held = queue.rows().to_vec2::<f32>().unwrap();
            for id in 0..pushed {
                let place = queue.find(id as u64);
                prop_assert_eq!(place.is_some(), id + len >= pushed, "{} of {}", id, pushed);
                if let Some(place) = place {
                    prop_assert_eq!(&held[place], &vec![2.0 * id as f32, 2.0 * id as f32 + 1.0]);
                    let fingerprint = image(id as u64).fingerprint;
                    prop_assert_eq!(queue.fingerprints()[place], fingerprint);
                }
            }
        }
    }

    #[test]
    fn a_query_is_not_compared_with_its_own_image() {
        let mut queue = Queue::empty([3, 2], &Device::Cpu).unwrap();
        queue.push(&rows(0, 2), &[7, 8].map(image)).unwrap();
        let is_out = |mask: Tensor| -> Vec<Vec<bool>> {
            let mask = mask.to_vec2::<f32>().unwrap();
            mask.iter().map(|row| row.iter().map(|value| *value < -1e8).collect()).collect()
        };
        let own = is_out(queue.exclude_own(&[8, 9]).unwrap());
        assert_eq!(own, [[false, true, false], [false; 3]]);
        let own_and_empty = is_out(queue.exclude_own_and_empty(&[8, 9]).unwrap());
        assert_eq!(own_and_empty, [[false, true, true], [false, false, true]]);
    }

    #[test]
    fn it_round_trips_through_arrays_to_the_last_bit_of_its_images() {
        let mut queue = Queue::random([4, 2], 1, &Device::Cpu).unwrap();
        queue.push(&rows(0, 3), &[u64::MAX - 1, 0x0123_4567_89ab_cdef, 0].map(image)).unwrap();
        let arrays = queue.to_arrays().unwrap();
        let mut restored = Queue::random([4, 2], 2, &Device::Cpu).unwrap();
        assert_ne!(restored.to_arrays().unwrap(), arrays);
        restored.load_arrays(&arrays).unwrap();
        assert_eq!(restored.to_arrays().unwrap(), arrays);
        assert_eq!(restored.find(0x0123_4567_89ab_cdef), Some(1));
        assert_eq!(restored.find(u64::MAX - 1), Some(0));
        assert_eq!(restored.fingerprints(), queue.fingerprints());

        let mut older = arrays.clone();
        older.remove(FINGERPRINTS);
        restored.load_arrays(&older).unwrap();
        assert_eq!(restored.fingerprints(), [None; 4]);

        let mut other = Queue::random([5, 2], 2, &Device::Cpu).unwrap();
        let error = other.load_arrays(&arrays).unwrap_err().to_string();
        assert!(error.contains(ROWS), "{error}");
    }

    #[test]
    fn replacing_keeps_the_image_and_the_order() {
        let mut queue = Queue::empty([2, 2], &Device::Cpu).unwrap();
        queue.push(&rows(0, 1), &[image(5)]).unwrap();
        queue.replace(0, &rows(9, 1)).unwrap();
        assert_eq!(queue.find(5), Some(0));
        assert_eq!(queue.rows().to_vec2::<f32>().unwrap()[0], [18.0, 19.0]);
        queue.push(&rows(1, 1), &[image(6)]).unwrap();
        assert_eq!((queue.find(5), queue.find(6)), (Some(0), Some(1)));
    }
}
