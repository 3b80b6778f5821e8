//! OpenAI's body, read as it is parsed.
//!
//! Nothing is built of it but the images and options that are taken: as a tree, a body of small values would take
//! a hundred times its bytes, and it is those that are counted. So the first value of the wrong kind, and the first
//! image too many, end the reading.

use super::error::Error;
use super::options::Options;
use super::prepare::Payload;
use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use std::cell::Cell;
use std::fmt;

/// The images of a body, at most `max_images`; its options go to `options`. Unknown fields are ignored, since
/// OpenAI's clients send more than we know. Images' base64 is left to the decode threads.
pub(super) fn read(
    bytes: &[u8],
    options: &mut Options,
    max_images: usize,
) -> Result<Vec<Payload>, Error> {
    // The parser's error would repeat the whole of anything else.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(Error::Body("it must be a JSON object".to_owned()));
    }
    let at = Cell::new(At::Body);
    let mut parser = serde_json::Deserializer::from_slice(bytes);
    let body = parser.deserialize_map(Fields { at: &at, max_images });
    let body = body.and_then(|body| parser.end().map(|()| body));
    let Body { images, choices } = body.map_err(|error| at.get().refusal(&error, max_images))?;
    for (name, value) in choices {
        options.set(name, &value)?;
    }
    Ok(images)
}

/// What is being read. The parser's error has no more than a text, so this says what it is the refusal of.
#[derive(Clone, Copy)]
enum At {
    Body,
    /// The image at this place.
    Input(usize),
    /// An image more than are allowed.
    Excess,
    Option(&'static str),
}

impl At {
    /// The refusal of a body whose parsing ended here with `error`.
    fn refusal(self, error: &serde_json::Error, max_images: usize) -> Error {
        // An error is one of data where the JSON is as it should be and a value is not.
        match self {
            Self::Excess => Error::Count { has: "too many", max: max_images },
            Self::Input(index) if error.is_data() => not_text(index),
            Self::Option(name) if error.is_data() => not_scalar(name),
            _ => Error::Body(error.to_string()),
        }
    }
}

fn not_text(index: usize) -> Error {
    Error::Value {
        param: "input",
        value: format!("[... no string at {index} ...]"),
        allowed: "a base64 or data-URI string or a list of them".to_owned(),
    }
}

fn not_scalar(param: &'static str) -> Error {
    let (value, allowed) = ("[...]".to_owned(), "a string or a number".to_owned());
    Error::Value { param, value, allowed }
}

/// What a body asks for.
struct Body {
    images: Vec<Payload>,
    /// Options by name.
    choices: Vec<(&'static str, String)>,
}

/// The fields that are read.
#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Field {
    Input,
    Model,
    EncodingFormat,
    Dimensions,
    #[serde(other)]
    Unknown,
}

/// Reads the body.
struct Fields<'a> {
    at: &'a Cell<At>,
    max_images: usize,
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = Body;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Body, A::Error> {
        let (mut images, mut choices, mut seen) = (None, vec![], vec![]);
        while let Some(field) = fields.next_key::<Field>()? {
            let name = match field {
                Field::Input => "input",
                Field::Model => "model",
                Field::EncodingFormat => "encoding_format",
                Field::Dimensions => "dimensions",
                Field::Unknown => {
                    fields.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            if seen.contains(&name) {
                return Err(de::Error::duplicate_field(name));
            }
            seen.push(name);
            if matches!(field, Field::Input) {
                self.at.set(At::Input(0));
                let input = Input { at: self.at, max_images: self.max_images };
                images = Some(fields.next_value_seed(input)?);
            } else {
                self.at.set(At::Option(name));
                let Choice(choice) = fields.next_value()?;
                choices.extend(choice.map(|choice| (name, choice)));
            }
            self.at.set(At::Body);
        }
        match images {
            Some(images) => Ok(Body { images, choices }),
            None => Err(de::Error::missing_field("input")),
        }
    }
}

/// Reads `input`: one image, or a list of them.
struct Input<'a> {
    at: &'a Cell<At>,
    max_images: usize,
}

impl<'de> DeserializeSeed<'de> for Input<'_> {
    type Value = Vec<Payload>;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Vec<Payload>, D::Error> {
        input.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Input<'_> {
    type Value = Vec<Payload>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a list of strings")
    }

    fn visit_str<E: de::Error>(self, image: &str) -> Result<Vec<Payload>, E> {
        Ok(vec![Payload::Text(image.to_owned())])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<Payload>, A::Error> {
        let mut images = vec![];
        while let Some(image) = list.next_element::<String>()? {
            if images.len() == self.max_images {
                self.at.set(At::Excess);
                return Err(de::Error::custom("too many images"));
            }
            images.push(Payload::Text(image));
            self.at.set(At::Input(images.len()));
        }
        Ok(images)
    }
}

/// What is given for an option, as text; nothing where it is null.
struct Choice(Option<String>);

impl<'de> Deserialize<'de> for Choice {
    fn deserialize<D: Deserializer<'de>>(value: D) -> Result<Self, D::Error> {
        value.deserialize_any(Scalar)
    }
}

/// Reads a choice.
struct Scalar;

impl Visitor<'_> for Scalar {
    type Value = Choice;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a number")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Choice, E> {
        Ok(Choice(Some(text.to_owned())))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Choice, E> {
        Ok(Choice(Some(number.to_string())))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Choice, E> {
        Ok(Choice(Some(number.to_string())))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Choice, E> {
        // As JSON writes it: 1.0 is no whole number.
        Ok(Choice(Some(Value::from(number).to_string())))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Choice, E> {
        Ok(Choice(None))
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::Encoding;
    use super::*;

    /// The images of a body of at most two, with its options.
    fn body(text: &str) -> Result<(Vec<String>, Options), String> {
        let mut options = Options::default();
        let text_of = |image| match image {
            Payload::Text(text) => text,
            Payload::Bytes(..) => panic!("JSON has no bytes"),
        };
        match read(text.as_bytes(), &mut options, 2) {
            Ok(images) => Ok((images.into_iter().map(text_of).collect(), options)),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn images_and_options_are_taken_and_unknown_fields_are_not() {
        let text = r#" {"user": {"a": [1, {}]}, "dimensions": 7, "input": ["a\u0062", "c"]} "#;
        let (images, options) = body(text).unwrap();
        assert_eq!(images, ["ab", "c"]);
        assert_eq!(options, Options { dimensions: Some(7), ..Options::default() });
        let text = r#"{"model": null, "encoding_format": "base64", "input": "one", "more": [0]}"#;
        let (images, options) = body(text).unwrap();
        assert_eq!(images, ["one"]);
        assert_eq!(options, Options { encoding: Encoding::Base64, ..Options::default() });
        assert_eq!(body(r#"{"input": []}"#).unwrap().0, [""; 0]);
    }

    /// What follows is not even JSON, and nobody comes to know.
    #[test]
    fn the_first_input_that_is_no_string_ends_the_reading() {
        for (text, index) in [
            (r#"{"input": {"": 0}, oh"#, 0),
            (r#"{"input": 5, oh"#, 0),
            (r#"{"input": null, oh"#, 0),
            (r#"{"input": [{"": oh"#, 0),
            (r#"{"input": [[0], oh"#, 0),
            (r#"{"input": ["a", 5, oh"#, 1),
            (r#"{"input": ["a", "b", [oh"#, 2),
        ] {
            let error = body(text).unwrap_err();
            assert!(error.contains(&format!("no string at {index}")), "{text}: {error}");
        }
    }

    #[test]
    fn one_image_too_many_ends_the_reading() {
        let expected = "the request has too many images: it must have from 1 to 2";
        assert_eq!(body(r#"{"input": ["a", "b", "c", oh"#).unwrap_err(), expected);
    }

    #[test]
    fn an_option_that_is_no_scalar_ends_the_reading() {
        for name in ["model", "encoding_format", "dimensions"] {
            for value in ["[oh", "{oh", "true, oh"] {
                let error = body(&format!(r#"{{"input": "a", "{name}": {value}"#)).unwrap_err();
                assert!(error.starts_with(name) && error.contains("a string or"), "{error}");
            }
        }
    }

    #[test]
    fn a_number_that_an_option_cannot_be_is_told_as_it_was_given() {
        for number in ["1.5", "-1", "1.0"] {
            let error = body(&format!(r#"{{"input": "a", "dimensions": {number}}}"#)).unwrap_err();
            assert!(error.starts_with(&format!("dimensions = {number} is")), "{error}");
        }
    }

    #[test]
    fn what_is_no_body_is_refused_as_such_and_not_repeated() {
        let long = format!("\"{}\"", "a".repeat(1000));
        for text in [
            "",
            "[]",
            long.as_str(),
            "{",
            "{oh}",
            r#"{"model": "latest"}"#,
            r#"{"input": "a"} oh"#,
            r#"{"input": "a", "input": "b"}"#,
            r#"{"model": "a", "model": "b", "input": "a"}"#,
            r#"{"input": ["a""#,
            r#"{"input": "\ud800"}"#,
            r#"{"input": "a", "dimensions": 1e999}"#,
        ] {
            let error = body(text).unwrap_err();
            assert!(error.starts_with("the body cannot be read: "), "{text}: {error}");
            assert!(error.len() < 200, "{error}");
        }
    }
}
