//! A checkpoint file whose name carries the right hash, beside a segment of replay bytes: damage that the hash
//! does not tell. What begins with `{` is put into a whole file as its manifest; anything else is the file. Law:
//! it is restored with arrays of their shapes and entries of their lengths, or refused with a message.

use safetensors::tensor::{Dtype, TensorView};
use selfstream::checkpoint::{Checkpoints, Config, FORMAT, Restored};
use selfstream::replay::{self, Policy};
use selfstream::source::offsets::OffsetTracker;
use std::collections::HashMap;
use std::fs;

/// Length of the one segment that there is.
const SEGMENT_BYTES: usize = 64;

/// Holds `input` to the law; says whether it was restored.
pub(crate) fn check(input: &[u8]) -> bool {
    let file = match std::str::from_utf8(input) {
        Ok(manifest) if manifest.starts_with('{') => with_manifest(manifest),
        _ => input.to_vec(),
    };
    let dir = tempfile::tempdir().expect("a folder can be made");
    let hash = blake3::hash(&file).to_hex();
    let name = format!("000000000001-{}.safetensors", &hash[..16]);
    fs::write(dir.path().join(name), &file).expect("a file can be written");
    let segment: Vec<u8> = (0..SEGMENT_BYTES as u8).collect();
    fs::write(dir.path().join("000000000000.images"), segment).expect("a file can be written");

    let config = Config { dir: dir.path().to_owned(), ..Config::default() };
    let (mut checkpoints, _) = Checkpoints::open(&config).expect("the folder is there");
    match checkpoints.load_newest() {
        Ok(restored) => {
            hold(restored.expect("a folder with a checkpoint has a newest one"));
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

fn with_manifest(manifest: &str) -> Vec<u8> {
    let numbers = [0; 8];
    let array = TensorView::new(Dtype::F32, vec![2], &numbers).expect("two numbers");
    let metadata = HashMap::from([("selfstream.checkpoint".to_owned(), manifest.to_owned())]);
    // Where the manifest of each format is looked for.
    let bytes =
        TensorView::new(Dtype::U8, vec![manifest.len()], manifest.as_bytes()).expect("its bytes");
    let arrays = [("w", array), ("selfstream.checkpoint", bytes)];
    safetensors::serialize(arrays, Some(metadata)).expect("any text can be metadata")
}

fn hold(Restored { checkpoint, entries, pending }: Restored) {
    let manifest = &checkpoint.manifest;
    assert_eq!(manifest.format, FORMAT);
    for (name, array) in &checkpoint.arrays {
        let len: usize = array.shape.iter().product();
        assert_eq!(array.values.len(), len, "{name}");
    }
    assert_eq!(entries.len() + pending.len(), manifest.replay.len());
    assert!(entries.iter().chain(&pending).all(|entry| entry.bytes.len() <= SEGMENT_BYTES));
    let left = manifest.left();
    assert_eq!(OffsetTracker::restore(left.clone()).left(), left);
    for policy in Policy::ALL {
        let mut replay = replay::Config { policy, ..replay::Config::default() }.build(0);
        replay.restore(entries.clone(), manifest.replay_offered);
        let n_kept = if policy == Policy::None { 0 } else { entries.len() };
        assert_eq!(replay.entries().len(), n_kept, "{policy:?}");
    }
}
