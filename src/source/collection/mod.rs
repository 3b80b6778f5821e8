//! Labelled collections of image files: what a stream is made from and an encoder is tested on.
//!
//! | kind | opened by | members in the order of | held in memory |
//! |---|---|---|---|
//! | directory tree | a folder | their paths | names |
//! | archive | `.tar` | the archive | names and positions |
//! | compressed archive | `.tar.gz`, `.tgz`, `.tar.xz`, `.txz` | the archive | everything |
//! | IDX pairs, as Fashion-MNIST comes | a folder of `*-images-idx3-ubyte.gz`, or one such file | the files | pixels |
//!
//! A member's label is the name of the folder it lies in, its group the folder above that one:
//! `photo/horse/105_0203.jpg` is a `horse` of the group `photo`. The order of an archive is kept
//! because it can be a message of its own: a stream that drifts.

use crate::seed::{self, Purpose};
use bytes::Bytes;
use rand::seq::SliceRandom;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod archive;
mod directory;
mod idx;

/// File name endings of the formats that are decoded, in lower case.
const IMAGE_EXTENSIONS: [&str; 14] = [
    "jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "pnm", "pbm", "pgm",
    "ppm",
];

/// Why a collection cannot be opened or a member cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CollectionError {
    /// The path itself cannot be read.
    #[error("cannot open {path}", path = path.display())]
    Open {
        /// The collection.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A folder below the path cannot be listed.
    #[error("cannot list the folder {path}", path = path.display())]
    List {
        /// The collection.
        path: PathBuf,
        /// Which entry, and what the system said.
        source: walkdir::Error,
    },
    /// The path is neither a folder nor a file of a known kind.
    #[error(
        "{path} is no collection of images: it must be a folder, a file that ends in .tar, \
         .tar.gz, .tgz, .tar.xz or .txz, or an IDX file that ends in {suffix}",
        path = path.display(),
        suffix = idx::IMAGES_SUFFIX
    )]
    UnknownKind {
        /// What was given.
        path: PathBuf,
    },
    /// No file in it is an image by its extension.
    #[error(
        "{path} holds no images ({skipped} other files): their names must end in one of {allowed}",
        path = path.display(),
        allowed = IMAGE_EXTENSIONS.join(", ")
    )]
    Empty {
        /// The collection.
        path: PathBuf,
        /// Files in it that are no images by their extension.
        skipped: usize,
    },
    /// The archive's structure is damaged, or it is not what its name says.
    #[error("cannot read the archive {path} after member {after:?}", path = path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// The last member that was found intact; empty if there was none.
        after: String,
        /// What the reader said.
        source: std::io::Error,
    },
    /// The archive ends within a member.
    #[error("the archive {path} is cut off within {member}", path = path.display())]
    CutOff {
        /// The archive.
        path: PathBuf,
        /// The member that is incomplete.
        member: String,
    },
    /// An IDX file is not what its header or its pair says.
    #[error("{path} is no usable IDX file: {problem}", path = path.display())]
    Idx {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the values found.
        problem: String,
    },
    /// A member cannot be read.
    #[error("cannot read {member} of {path}", path = path.display())]
    Read {
        /// The collection.
        path: PathBuf,
        /// The member's name.
        member: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// One image: where it stands among the others.
struct Member {
    /// Path within the collection, parts joined by `/`.
    name: String,
    label: Option<Arc<str>>,
    group: Option<Arc<str>>,
}

/// Where the bytes of the members are, one entry a member in each kind.
enum Contents {
    Directory(directory::Files),
    Tar(archive::Positions),
    Memory(Vec<Bytes>),
    Idx(idx::Images),
}

/// What opening a kind yields.
struct Listing {
    members: Vec<Member>,
    contents: Contents,
    /// Files that are no images by their extension.
    skipped: usize,
}

/// An opened, never empty collection of images. Members are addressed by their position, which is
/// the same each time the same collection is opened.
pub struct Collection {
    path: PathBuf,
    members: Vec<Member>,
    contents: Contents,
    skipped: usize,
}

impl Collection {
    /// Opens the collection at `path`; the module says what that may be.
    ///
    /// # Errors
    /// If it cannot be read, is of no known kind, is damaged, or holds no image.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CollectionError> {
        let path = path.as_ref();
        let Listing { members, contents, skipped } = list(path)?;
        if members.is_empty() {
            return Err(CollectionError::Empty { path: path.to_owned(), skipped });
        }
        let n_images = members.len();
        tracing::info!(path = %path.display(), n_images, skipped, "opened a collection of images");
        Ok(Self { path: path.to_owned(), members, contents, skipped })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of images, at least one.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Never: a collection without images is refused when it is opened.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// How many files were passed over because their names are not those of images.
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// The path of image `index` within the collection, parts joined by `/`.
    ///
    /// # Panics
    /// If `index` is not below [`len`](Self::len), as all methods that take one.
    pub fn name(&self, index: usize) -> &str {
        &self.members[index].name
    }

    /// The class of image `index`: the name of the folder it lies in.
    pub fn label(&self, index: usize) -> Option<&str> {
        self.members[index].label.as_deref()
    }

    /// The folder above the class of image `index`, such as a domain or a split.
    pub fn group(&self, index: usize) -> Option<&str> {
        self.members[index].group.as_deref()
    }

    /// The bytes of image `index`.
    ///
    /// # Errors
    /// If the file has become unreadable since the collection was opened.
    pub fn read(&self, index: usize) -> Result<Bytes, CollectionError> {
        let bytes = match &self.contents {
            Contents::Directory(files) => files.read(index),
            Contents::Tar(positions) => positions.read(index),
            Contents::Memory(members) => Ok(members[index].clone()),
            Contents::Idx(images) => images.read(index),
        };
        bytes.map_err(|source| CollectionError::Read {
            path: self.path.clone(),
            member: self.name(index).to_owned(),
            source,
        })
    }

    /// Every position once, in an order drawn anew for each `pass` of a run seeded by `seed`.
    pub fn shuffled_order(&self, seed: u64, pass: u64) -> Vec<usize> {
        shuffled(self.len(), seed, pass)
    }
}

/// The numbers below `len`, each once, in an order drawn anew for each `pass`.
pub fn shuffled(len: usize, seed: u64, pass: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    order.shuffle(&mut seed::rng(seed, Purpose::Shuffle, &[pass]));
    order
}

fn list(path: &Path) -> Result<Listing, CollectionError> {
    let metadata = std::fs::metadata(path)
        .map_err(|source| CollectionError::Open { path: path.to_owned(), source })?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let ends = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
    if metadata.is_dir() {
        match idx::images_files(path)? {
            files if files.is_empty() => directory::list(path),
            files => idx::list(&files),
        }
    } else if ends(&[".tar"]) {
        archive::list(path)
    } else if ends(&[".tar.gz", ".tgz"]) {
        archive::unpack(path, |file| Box::new(flate2::read::MultiGzDecoder::new(file)))
    } else if ends(&[".tar.xz", ".txz"]) {
        archive::unpack(path, |file| Box::new(liblzma::read::XzDecoder::new_multi_decoder(file)))
    } else if ends(&[idx::IMAGES_SUFFIX]) {
        idx::list(&[path.to_owned()])
    } else {
        Err(CollectionError::UnknownKind { path: path.to_owned() })
    }
}

/// Whether a file is an image by its name. Hidden files are not: archives made on a Mac hold a
/// `._0001.jpg` of metadata beside each `0001.jpg`.
fn is_image(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    !hidden && IMAGE_EXTENSIONS.contains(&extension.as_str())
}

/// Makes members of paths; those of one folder share their label, so that a million members do not
/// hold a million copies of ten words.
#[derive(Default)]
struct Labels(HashSet<Arc<str>>);

impl Labels {
    fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.0.get(text) {
            return Arc::clone(known);
        }
        let new: Arc<str> = text.into();
        self.0.insert(Arc::clone(&new));
        new
    }

    /// The member at `path` within its collection.
    fn member(&mut self, path: &Path) -> Member {
        let parts: Vec<_> = path
            .components()
            .filter_map(|part| match part {
                std::path::Component::Normal(name) => Some(name.to_string_lossy()),
                _ => None,
            })
            .collect();
        let mut above = parts.iter().rev().skip(1);
        let label = above.next().map(|name| self.share(name));
        let group = above.next().map(|name| self.share(name));
        Member { name: parts.join("/"), label, group }
    }
}

#[cfg(test)]
mod tests;
