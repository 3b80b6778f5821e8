//! What a client may choose beside its images, whichever form its request has.

use super::error::{Error, shown};

/// How the vectors are written.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Encoding {
    /// A list of numbers.
    #[default]
    Float,
    /// Base64 of little-endian f32.
    Base64,
}

/// The choices of one request.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Options {
    /// `latest`, `stable`, a version, or the beginning of one.
    pub(super) model: String,
    pub(super) encoding: Encoding,
    /// How many of the first values to keep; all, if none.
    pub(super) dimensions: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Self { model: "latest".to_owned(), encoding: Encoding::default(), dimensions: None }
    }
}

impl Options {
    /// Whether `name` is an option's, one that is accepted and ignored included.
    pub(super) fn is_name(name: &str) -> bool {
        matches!(name, "model" | "encoding_format" | "dimensions" | "user")
    }

    /// Sets the option called `name`; another name is ignored, as OpenAI's clients send extras.
    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<(), Error> {
        match name {
            "model" => self.model = value.to_owned(),
            "encoding_format" => {
                self.encoding = match value {
                    "float" => Encoding::Float,
                    "base64" => Encoding::Base64,
                    _ => return Err(refused("encoding_format", value, "float or base64")),
                }
            }
            "dimensions" => match value.parse() {
                Ok(dimensions) => self.dimensions = Some(dimensions),
                Err(_) => return Err(refused("dimensions", value, "a whole number from 1")),
            },
            _ => {}
        }
        Ok(())
    }

    /// How many values of an embedding of `feature_dim` are asked for.
    pub(super) fn dimensions_of(&self, feature_dim: usize) -> Result<usize, Error> {
        let dimensions = self.dimensions.unwrap_or(feature_dim);
        if (1..=feature_dim).contains(&dimensions) {
            Ok(dimensions)
        } else {
            let allowed = format!("from 1 to {feature_dim}");
            Err(refused("dimensions", &dimensions.to_string(), &allowed))
        }
    }
}

fn refused(param: &'static str, value: &str, allowed: &str) -> Error {
    Error::Value { param, value: shown(value), allowed: allowed.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_option_is_set_and_others_are_ignored() {
        let mut options = Options::default();
        for (name, value) in
            [("model", "abcdef12"), ("encoding_format", "base64"), ("dimensions", "7"), ("x", "y")]
        {
            options.set(name, value).unwrap();
        }
        let encoding = Encoding::Base64;
        let expected = Options { model: "abcdef12".to_owned(), encoding, dimensions: Some(7) };
        assert_eq!(options, expected);
    }

    #[test]
    fn dimensions_lie_from_one_to_all() {
        let of = |dimensions| Options { dimensions, ..Options::default() }.dimensions_of(4).ok();
        assert_eq!(of(None), Some(4));
        assert_eq!([of(Some(1)), of(Some(4))], [Some(1), Some(4)]);
        assert_eq!([of(Some(0)), of(Some(5))], [None, None]);
    }

    #[test]
    fn values_that_cannot_be_read_are_refused() {
        let mut options = Options::default();
        for (name, value) in [("encoding_format", "int8"), ("dimensions", "-1")] {
            assert!(options.set(name, value).is_err(), "{name}={value}");
        }
        assert_eq!(options, Options::default());
    }

    #[test]
    fn a_refusal_does_not_repeat_megabytes() {
        let error = Options::default().set("encoding_format", &"\u{7f}".repeat(1 << 20));
        assert!(error.unwrap_err().to_string().len() < 1000);
    }
}
