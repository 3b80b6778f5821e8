use super::*;
use std::io::Write;

/// Members of a small collection, sorted by path: what the files hold does not matter here.
const FILES: [(&str, &[u8]); 5] = [
    ("photo/dog/1.jpg", b"first"),
    ("photo/dog/2.PNG", b""),
    ("photo/horse/1.jpeg", b"the third"),
    ("sketch/dog/1.webp", &[7; 1000]),
    ("top.gif", b"fifth"),
];
const NO_IMAGES: [&str; 3] = ["photo/dog/._1.jpg", "photo/notes.txt", "photo/noextension"];

fn tar_bytes(names: impl IntoIterator<Item = (String, Vec<u8>)>) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in names {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn sample_tar() -> Vec<u8> {
    let images = FILES.iter().map(|(name, bytes)| (format!("./{name}"), bytes.to_vec()));
    let others = NO_IMAGES.iter().map(|name| ((*name).to_owned(), b"none".to_vec()));
    tar_bytes(images.chain(others))
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, bytes).unwrap();
    path
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn refusal(path: &Path) -> CollectionError {
    Collection::open(path).map(|_| ()).unwrap_err()
}

#[test]
fn every_kind_of_container_gives_the_same_collection() {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in FILES {
        write(&folder.path().join("tree"), name, bytes);
    }
    for name in NO_IMAGES {
        write(&folder.path().join("tree"), name, b"none");
    }
    let tar = sample_tar();
    write(folder.path(), "a.tar", &tar);
    write(folder.path(), "a.tar.gz", &gzip(&tar));
    write(folder.path(), "a.tar.xz", &xz(&tar));
    for kind in ["tree", "a.tar", "a.tar.gz", "a.tar.xz"] {
        let collection = Collection::open(folder.path().join(kind)).unwrap();
        assert_eq!(collection.skipped(), NO_IMAGES.len(), "{kind}");
        assert_eq!(collection.len(), FILES.len(), "{kind}");
        for (index, (name, bytes)) in FILES.into_iter().enumerate() {
            assert_eq!(collection.name(index), name, "{kind}");
            assert_eq!(collection.read(index).unwrap(), bytes, "{kind}");
        }
        let labels: Vec<_> = (0..5).map(|index| collection.label(index)).collect();
        assert_eq!(labels, [Some("dog"), Some("dog"), Some("horse"), Some("dog"), None]);
        let groups: Vec<_> = (0..5).map(|index| collection.group(index)).collect();
        assert_eq!(groups, [Some("photo"), Some("photo"), Some("photo"), Some("sketch"), None]);
    }
}

#[test]
fn an_archive_keeps_its_own_order() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["b/2.jpg", "a/1.jpg", "b/1.jpg"];
    let tar = tar_bytes(names.map(|name| (name.to_owned(), name.as_bytes().to_vec())));
    let collection = Collection::open(write(folder.path(), "a.tar", &tar)).unwrap();
    let found: Vec<_> = (0..collection.len()).map(|index| collection.name(index)).collect();
    assert_eq!(found, names);
}

#[test]
fn what_is_no_collection_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("absent.tar");
    assert!(matches!(refusal(&absent), CollectionError::Open { path, .. } if path == absent));
    let zip = write(folder.path(), "images.zip", b"PK");
    assert!(refusal(&zip).to_string().contains("images.zip is no collection of images"));
    let empty = write(folder.path(), "no/notes.txt", b"none").parent().unwrap().to_owned();
    assert!(matches!(refusal(&empty), CollectionError::Empty { skipped: 1, .. }));
    let empty_tar = write(folder.path(), "no.tar", &tar_bytes([]));
    assert!(matches!(refusal(&empty_tar), CollectionError::Empty { skipped: 0, .. }));
    let text = write(folder.path(), "text.tar", &[b'x'; 2048]);
    assert!(matches!(refusal(&text), CollectionError::Archive { .. }));
    let not_gzip = write(folder.path(), "text.tar.gz", &[b'x'; 2048]);
    assert!(matches!(refusal(&not_gzip), CollectionError::Archive { .. }));
}

#[test]
fn an_archive_cut_off_anywhere_is_an_error_or_holds_only_whole_members() {
    let folder = tempfile::tempdir().unwrap();
    let tar = tar_bytes(FILES.map(|(name, bytes)| (name.to_owned(), bytes.to_vec())));
    for length in (0..tar.len()).step_by(100) {
        let path = write(folder.path(), "cut.tar", &tar[..length]);
        let Ok(collection) = Collection::open(path) else { continue };
        for (index, (_, bytes)) in FILES.into_iter().enumerate().take(collection.len()) {
            assert_eq!(collection.read(index).unwrap(), bytes, "cut at {length}");
        }
    }
    let within_fourth = 2 * 3 * 512 + 900;
    let path = write(folder.path(), "cut.tar", &tar[..within_fourth]);
    assert!(matches!(refusal(&path),
        CollectionError::CutOff { member, .. } if member == "sketch/dog/1.webp"));
    let whole = xz(&tar);
    let path = write(folder.path(), "cut.tar.xz", &whole[..whole.len() - 40]);
    assert!(matches!(refusal(&path), CollectionError::Archive { .. }));
}

#[test]
fn a_file_that_vanishes_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "dog/1.jpg", b"image");
    let collection = Collection::open(folder.path()).unwrap();
    std::fs::remove_file(path).unwrap();
    let error = collection.read(0).unwrap_err().to_string();
    assert!(error.contains("cannot read dog/1.jpg of"), "{error}");
}

#[test]
fn a_shuffled_order_is_a_permutation_drawn_by_seed_and_pass() {
    let folder = tempfile::tempdir().unwrap();
    let names = (0..100).map(|index| (format!("{index:03}.jpg"), vec![index]));
    let collection = Collection::open(write(folder.path(), "a.tar", &tar_bytes(names))).unwrap();
    let first = collection.shuffled_order(1, 0);
    assert_eq!(first, collection.shuffled_order(1, 0));
    assert_ne!(first, collection.shuffled_order(1, 1));
    assert_ne!(first, collection.shuffled_order(2, 0));
    let mut sorted = first;
    sorted.sort_unstable();
    assert!(sorted.into_iter().eq(0..100));
}

/// An IDX file of unsigned bytes, gzipped.
fn idx_gz(dimensions: &[u32], elements: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, dimensions.len() as u8];
    for dimension in dimensions {
        bytes.extend(dimension.to_be_bytes());
    }
    bytes.extend(elements);
    gzip(&bytes)
}

#[test]
fn idx_pairs_become_png_files_with_class_names() {
    let folder = tempfile::tempdir().unwrap();
    let fashion = folder.path().join("fashion-mnist");
    let grey: Vec<u8> = (0..18).map(|value| value * 14).collect();
    write(&fashion, "train-images-idx3-ubyte.gz", &idx_gz(&[3, 2, 3], &grey));
    write(&fashion, "train-labels-idx1-ubyte.gz", &idx_gz(&[3], &[9, 0, 5]));
    write(&fashion, "t10k-images-idx3-ubyte.gz", &idx_gz(&[1, 1, 2], &[255, 3]));
    write(&fashion, "t10k-labels-idx1-ubyte.gz", &idx_gz(&[1], &[1]));
    let collection = Collection::open(&fashion).unwrap();
    let labels: Vec<_> = (0..4).filter_map(|index| collection.label(index)).collect();
    assert_eq!(labels, ["Trouser", "Ankle boot", "T-shirt/top", "Sandal"]);
    let groups: Vec<_> = (0..4).filter_map(|index| collection.group(index)).collect();
    assert_eq!(groups, ["t10k", "train", "train", "train"]);
    assert_eq!(collection.name(2), "train/00001.png");
    for (index, expected) in
        [&[255, 3][..], &grey[..6], &grey[6..12], &grey[12..]].iter().enumerate()
    {
        let png = image::load_from_memory(&collection.read(index).unwrap()).unwrap();
        assert_eq!(png.as_luma8().unwrap().as_raw(), expected);
    }
    let alone = Collection::open(fashion.join("train-images-idx3-ubyte.gz")).unwrap();
    assert_eq!((alone.len(), alone.label(0)), (3, Some("Ankle boot")));
}

#[test]
fn a_damaged_idx_pair_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let labels = "train-labels-idx1-ubyte.gz";
    let images = write(folder.path(), "train-images-idx3-ubyte.gz", &idx_gz(&[1, 1, 2], &[1, 2]));
    assert!(
        matches!(refusal(&images), CollectionError::Open { path, .. } if path.ends_with(labels))
    );
    write(folder.path(), labels, &idx_gz(&[2], &[1, 2]));
    assert!(refusal(&images).to_string().ends_with("it holds 2 labels for 1 images"));
    for (dimensions, elements, problem) in [
        (&[1, 1, 3][..], &[1, 2][..], "it has 2 elements where [1, 1, 3] are promised"),
        (&[1, 0, 3], &[], "its images measure 0 x 3 pixels"),
        (&[2], &[1, 2], "it has 10 bytes, its header needs 16"),
        (&[1, 1, 1, 1], &[1], "it begins with [0, 0, 8, 4] where [0, 0, 8, 3] is expected"),
    ] {
        let images =
            write(folder.path(), "train-images-idx3-ubyte.gz", &idx_gz(dimensions, elements));
        let error = refusal(&images).to_string();
        assert!(error.contains(problem), "{error}");
    }
}
