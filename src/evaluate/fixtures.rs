//! Collections for tests.

use crate::source::collection::Collection;
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use std::path::Path;

const COLOURS: [(&str, [u8; 3]); 3] =
    [("blue", [20, 20, 220]), ("green", [20, 220, 20]), ("red", [220, 20, 20])];

pub(super) fn png(colour: [u8; 3]) -> Vec<u8> {
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes)
        .write_image(&colour.repeat(12 * 8), 12, 8, ExtendedColorType::Rgb8)
        .unwrap();
    bytes
}

/// `n_each` images of each colour, which is their class, every one a shade of it.
pub(super) fn coloured(folder: &Path, n_each: u8) -> Collection {
    for (name, colour) in COLOURS {
        std::fs::create_dir_all(folder.join(name)).unwrap();
        for index in 0..n_each {
            let shade = colour.map(|byte| byte + index);
            std::fs::write(folder.join(name).join(format!("{index:02}.png")), png(shade)).unwrap();
        }
    }
    Collection::open(folder).unwrap()
}
