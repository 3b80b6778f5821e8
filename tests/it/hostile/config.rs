//! The text of a configuration file. Law: it is refused with a message, or every
//! value of it is allowed; and the same text gives the same configuration.

use selfstream::config::Config;

/// Holds `bytes` to the law; says whether they are a configuration.
pub(crate) fn check(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    match Config::parse(text) {
        Ok(config) => {
            config.validate().expect("what is parsed has been checked");
            assert_eq!(Config::parse(text).expect("it was taken before"), config);
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}
