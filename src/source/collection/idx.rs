//! Pairs of gzipped IDX files, the form in which MNIST and Fashion-MNIST come (Debian's package
//! `dataset-fashion-mnist` among others): one file of images, one of labels.
//!
//! An IDX file is big-endian: two zero bytes, the element type (8 is an unsigned byte), the number
//! of dimensions, each dimension as 32 bits, then the elements. Source:
//! <http://yann.lecun.com/exdb/mnist/>, "The IDX file format".

use super::{CollectionError, Contents, Labels, Listing, Member};
use bytes::Bytes;
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use std::io::Read;
use std::path::{Path, PathBuf};

/// How the name of a file of images ends; its labels lie beside it under [`LABELS_SUFFIX`].
pub(super) const IMAGES_SUFFIX: &str = "-images-idx3-ubyte.gz";
const LABELS_SUFFIX: &str = "-labels-idx1-ubyte.gz";

/// Class names of Fashion-MNIST, by label. Source: its README, section "Labels".
const FASHION_CLASSES: [&str; 10] = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
];

/// The grey images of one or more IDX files; each becomes a PNG when it is read.
pub(super) struct Images {
    parts: Vec<Part>,
}

/// The images of one file.
struct Part {
    height_px: usize,
    width_px: usize,
    /// `[N, height_px, width_px]`.
    grey: Vec<u8>,
}

impl Images {
    /// Image `index`, counted through all files, as the bytes of a PNG.
    pub(super) fn read(&self, mut index: usize) -> std::io::Result<Bytes> {
        for Part { height_px, width_px, grey } in &self.parts {
            let image_bytes = height_px * width_px;
            let n_images = grey.len() / image_bytes;
            if index >= n_images {
                index -= n_images;
                continue;
            }
            let pixels = &grey[index * image_bytes..][..image_bytes];
            let mut png = Vec::new();
            PngEncoder::new(&mut png)
                .write_image(pixels, *width_px as u32, *height_px as u32, ExtendedColorType::L8)
                .map_err(std::io::Error::other)?;
            return Ok(png.into());
        }
        Err(std::io::ErrorKind::NotFound.into())
    }
}

/// The files of images directly in `folder`, sorted by name.
pub(super) fn images_files(folder: &Path) -> Result<Vec<PathBuf>, CollectionError> {
    let open = |source| CollectionError::Open { path: folder.to_owned(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(open)? {
        let path = entry.map_err(open)?.path();
        if path.to_string_lossy().ends_with(IMAGES_SUFFIX) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Lists the images of `files`, one after the other. The group of an image is its file's prefix,
/// `train` or `t10k`.
pub(super) fn list(files: &[PathBuf]) -> Result<Listing, CollectionError> {
    let mut labels = Labels::default();
    let mut members = Vec::new();
    let mut parts = Vec::new();
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let prefix = name.strip_suffix(IMAGES_SUFFIX).unwrap_or(&name);
        let is_fashion = is_fashion(file);
        let part = read_images(file)?;
        let labels_file = file.with_file_name(format!("{prefix}{LABELS_SUFFIX}"));
        let classes =
            read_labels(&labels_file, part.grey.len() / (part.height_px * part.width_px))?;
        for (position, class) in classes.into_iter().enumerate() {
            let class = match FASHION_CLASSES.get(usize::from(class)) {
                Some(name) if is_fashion => (*name).to_owned(),
                _ => class.to_string(),
            };
            members.push(Member {
                name: format!("{prefix}/{position:05}.png"),
                label: Some(labels.share(&class)),
                group: Some(labels.share(prefix)),
            });
        }
        parts.push(part);
    }
    Ok(Listing { members, contents: Contents::Idx(Images { parts }), skipped: 0 })
}

/// Whether labels are Fashion-MNIST's classes: its folder says so. Otherwise they are digits, for
/// MNIST itself comes under the very same file names.
fn is_fashion(file: &Path) -> bool {
    let absolute = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let folder = absolute.parent().and_then(Path::file_name).unwrap_or_default();
    folder.to_string_lossy().to_lowercase().contains("fashion")
}

fn read_images(path: &Path) -> Result<Part, CollectionError> {
    let ([_, height_px, width_px], grey) = read_idx(path)?;
    if height_px == 0 || width_px == 0 {
        let problem = format!("its images measure {height_px} x {width_px} pixels");
        return Err(CollectionError::Idx { path: path.to_owned(), problem });
    }
    Ok(Part { height_px, width_px, grey })
}

fn read_labels(path: &Path, n_images: usize) -> Result<Vec<u8>, CollectionError> {
    let ([n_labels], labels) = read_idx(path)?;
    if n_labels != n_images {
        let problem = format!("it holds {n_labels} labels for {n_images} images");
        return Err(CollectionError::Idx { path: path.to_owned(), problem });
    }
    Ok(labels)
}

/// Reads a gzipped IDX file of unsigned bytes with `DIMENSIONS` dimensions.
fn read_idx<const DIMENSIONS: usize>(
    path: &Path,
) -> Result<([usize; DIMENSIONS], Vec<u8>), CollectionError> {
    let open = |source| CollectionError::Open { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(open)?;
    flate2::read::MultiGzDecoder::new(file).read_to_end(&mut bytes).map_err(open)?;
    parse_idx(bytes).map_err(|problem| CollectionError::Idx { path: path.to_owned(), problem })
}

/// Takes an IDX file of unsigned bytes apart, or says what is wrong with it.
fn parse_idx<const DIMENSIONS: usize>(
    mut bytes: Vec<u8>,
) -> Result<([usize; DIMENSIONS], Vec<u8>), String> {
    let header_bytes = 4 + 4 * DIMENSIONS;
    if bytes.len() < header_bytes {
        return Err(format!("it has {} bytes, its header needs {header_bytes}", bytes.len()));
    }
    let wanted = [0, 0, 8, DIMENSIONS as u8];
    if bytes[..4] != wanted {
        return Err(format!("it begins with {:?} where {wanted:?} is expected", &bytes[..4]));
    }
    let mut dimensions = [0_usize; DIMENSIONS];
    for (dimension, field) in dimensions.iter_mut().zip(bytes[4..].as_chunks::<4>().0) {
        *dimension = u32::from_be_bytes(*field) as usize;
    }
    let elements = bytes.split_off(header_bytes);
    let promised = dimensions.iter().try_fold(1_usize, |product, n| product.checked_mul(*n));
    if promised != Some(elements.len()) {
        let found = elements.len();
        return Err(format!("it has {found} elements where {dimensions:?} are promised"));
    }
    Ok((dimensions, elements))
}
