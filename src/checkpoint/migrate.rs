//! Checkpoints of older formats become those of today's, a format at a time.
//!
//! Fields that were added to a format have defaults, which say what older files meant. Format 2 has the manifest of
//! format 1 in another place (`file.rs`).
//!
//! To change the form:
//! 1. a field that older checkpoints do well without gets a default in `manifest.rs`, and the format stays;
//! 2. for anything else, count [`FORMAT`] up, and write a function from the form before to the new one;
//! 3. add its row to [`STEPS`], with the format that it begins at;
//! 4. keep a file that the old version wrote in `tests/data`, and hold the step to it in the tests below.

use super::{Damage, FORMAT};
use crate::encoder::NamedArrays;
use serde_json::Value;

/// What a file holds, in whatever format.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Form {
    pub(super) manifest: Value,
    pub(super) arrays: NamedArrays,
}

/// From one format to the next; the number in the manifest is counted up for it.
type Step = fn(Form) -> Result<Form, Damage>;

/// One for each format before [`FORMAT`], the oldest first: the format, and what leads on from it.
const STEPS: &[(u32, Step)] = &[(1, Ok)];

/// The format of a manifest, if this program reads it.
///
/// # Errors
/// One that is newer, or that there was not.
pub(super) fn known_format(manifest: &Value) -> Result<u32, Damage> {
    known(manifest, STEPS, FORMAT)
}

/// What `form` is in today's format.
///
/// # Errors
/// A format that this program does not read; a form that is not what its format says.
pub(super) fn to_newest(form: Form) -> Result<Form, Damage> {
    through(form, STEPS, FORMAT)
}

fn known(manifest: &Value, steps: &[(u32, Step)], newest: u32) -> Result<u32, Damage> {
    let found = manifest["format"].as_u64().unwrap_or(0);
    match u32::try_from(found) {
        Ok(format) if format == newest || steps.iter().any(|(from, _)| *from == format) => {
            Ok(format)
        }
        Ok(format) if format < newest => Err(Damage::Format(found)),
        _ => Err(Damage::Newer(found)),
    }
}

fn through(mut form: Form, steps: &[(u32, Step)], newest: u32) -> Result<Form, Damage> {
    loop {
        let format = known(&form.manifest, steps, newest)?;
        let Some((_, step)) = steps.iter().find(|(from, _)| *from == format) else {
            return Ok(form);
        };
        form = step(form)?;
        form.manifest["format"] = Value::from(format + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::Array;
    use serde_json::json;

    fn form(manifest: Value) -> Form {
        let array = Array { shape: vec![2], values: vec![1.0, -1.0] };
        Form { manifest, arrays: [("w".to_owned(), array)].into() }
    }

    #[test]
    fn every_format_before_todays_has_its_step() {
        for (index, (from, _)) in STEPS.iter().enumerate() {
            assert_eq!(*from as usize, index + 1);
        }
        assert_eq!(STEPS.len() + 1, FORMAT as usize);
    }

    #[test]
    fn todays_format_stays_as_it_is() {
        let form = form(json!({ "format": FORMAT, "step": 7 }));
        assert_eq!(to_newest(form.clone()).unwrap(), form);
    }

    #[test]
    fn formats_that_are_newer_or_never_were_are_refused_by_number() {
        let refused = |manifest: Value| to_newest(form(manifest)).unwrap_err().to_string();
        for newer in [u64::from(FORMAT) + 1, u64::MAX] {
            let error = refused(json!({ "format": newer, "step": "of another kind" }));
            assert!(error.contains(&format!("format {newer}, newer than {FORMAT}")), "{error}");
        }
        for manifest in [json!({ "format": 0 }), json!({}), json!([]), json!({ "format": "1" })] {
            let error = refused(manifest);
            assert!(error.contains("format 0, which is none of 1 to"), "{error}");
        }
    }

    /// Steps of a toy, whose third format is today's.
    #[test]
    fn an_older_format_goes_through_each_step_in_turn() {
        const TOY: &[(u32, Step)] = &[
            (1, |mut form| {
                form.manifest["steps"] = form.manifest["step"].take();
                Ok(form)
            }),
            (2, |mut form| {
                form.manifest["steps"] = json!([form.manifest["steps"]]);
                form.arrays.remove("w").ok_or(Damage::NoManifest)?;
                Ok(form)
            }),
        ];
        let oldest = form(json!({ "format": 1, "step": 7 }));
        let newest = through(oldest.clone(), TOY, 3).unwrap();
        assert_eq!(newest.manifest, json!({ "format": 3, "step": null, "steps": [7] }));
        assert!(newest.arrays.is_empty());
        // A form that is not what its format says.
        let wrong = Form { arrays: NamedArrays::new(), ..oldest };
        assert!(matches!(through(wrong, TOY, 3), Err(Damage::NoManifest)));
        assert!(matches!(through(form(json!({ "format": 4 })), TOY, 3), Err(Damage::Newer(4))));
    }
}
