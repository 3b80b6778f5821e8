//! From a known format to pixels: header, limits, pixels, in this order.

use super::metered::Metered;
use super::{Config, Pixels, Refusal, colour, jpeg, limits, pnm, tiff, webp};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};

/// Decodes `bytes` of `format`; the orientation is still to be applied.
pub(super) fn decode(
    bytes: &[u8],
    format: ImageFormat,
    config: &Config,
) -> Result<(Pixels, Orientation), Refusal> {
    let mut row_bytes = 0;
    match format {
        ImageFormat::Jpeg => return jpeg::decode(bytes, config),
        ImageFormat::WebP => webp::check(bytes, config)?,
        ImageFormat::Tiff => row_bytes = tiff::check(bytes, config)?,
        ImageFormat::Pnm => pnm::check(bytes)?,
        _ => {}
    }
    decode_with_image(bytes, format, row_bytes, config)
}

/// Decodes by the `image` crate, which may take `row_bytes` beside what it counts itself. Of an
/// animation this is the first frame; of a TIFF with several pages, the first page.
fn decode_with_image(
    bytes: &[u8],
    format: ImageFormat,
    row_bytes: u64,
    config: &Config,
) -> Result<(Pixels, Orientation), Refusal> {
    let refuse = Refusal::from_image(format, limits::max_alloc_bytes(config));
    let mut limits = limits::image_limits(config);
    limits.reserve(row_bytes).map_err(&refuse)?;

    let file = Metered::new(bytes, limits::max_read_bytes(bytes.len(), config));
    let mut reader = ImageReader::with_format(file, format);
    reader.limits(limits.clone());
    let mut decoder = reader.into_decoder().map_err(&refuse)?;
    let (width_px, height_px) = decoder.dimensions();
    limits::check_size(width_px, height_px, config)?;

    // The decoder may allocate what its output leaves of the limit.
    limits.reserve(decoder.total_bytes()).map_err(&refuse)?;
    decoder.set_limits(limits).map_err(&refuse)?;
    let orientation = decoder.orientation().map_err(&refuse)?;
    let image = DynamicImage::from_decoder(decoder).map_err(&refuse)?;
    Ok((colour::flatten(image, config.background), orientation))
}
