//! What the bytes are: first what the sender says, then what they begin with.

use super::Refusal;
use image::ImageFormat;

/// Checks the content type, then recognises the format by its first bytes.
///
/// A type that says "some image" or "some bytes" is not believed further: a PNG labelled
/// image/jpeg is decoded as the PNG it is. A type that says "not an image" is believed.
pub(super) fn format(bytes: &[u8], content_type: Option<&str>) -> Result<ImageFormat, Refusal> {
    if let Some(content_type) = content_type.filter(|content_type| !may_be_image(content_type)) {
        return Err(Refusal::ContentType { content_type: content_type.to_owned() });
    }
    image::guess_format(bytes).map_err(|_| Refusal::UnknownFormat {
        first_bytes: bytes.iter().copied().take(8).collect(),
    })
}

/// Parameters (`; charset=...`), case and surrounding space carry no meaning here (RFC 9110,
/// section 8.3.1).
fn may_be_image(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence.is_empty() || essence == "application/octet-stream" || essence.starts_with("image/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_type_is_believed_only_when_it_denies_being_an_image() {
        for accepted in
            ["", "image/jpeg", "IMAGE/PNG", " image/webp ; q=1", "application/octet-stream"]
        {
            assert_eq!(format(b"GIF89a", Some(accepted)).unwrap(), ImageFormat::Gif, "{accepted}");
        }
        assert_eq!(format(b"GIF89a", None).unwrap(), ImageFormat::Gif);
        for refused in ["text/plain", "application/json", "imagery/png", "text/uri-list", "image"] {
            let refusal = format(b"GIF89a", Some(refused)).unwrap_err();
            assert_eq!(refusal.reason(), "content_type", "{refused}");
            assert!(refusal.to_string().contains(refused), "{refusal}");
        }
    }

    #[test]
    fn unknown_first_bytes_are_quoted() {
        let refusal = format(b"hello, world", None).unwrap_err();
        assert_eq!(refusal.reason(), "unknown_format");
        assert!(refusal.to_string().contains("[68, 65, 6c, 6c, 6f, 2c, 20, 77]"), "{refusal}");
    }
}
