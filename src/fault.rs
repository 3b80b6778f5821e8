//! Faults on demand, in builds with the feature `failpoints`; otherwise nothing.
//!
//! The environment variable FAILPOINTS names them, as the crate `fail` reads it:
//! `checkpoint_rename=3*off->return` ends the process the fourth time that it is about to rename a
//! checkpoint; `sleep(MILLISECONDS)` holds it up there instead. The names stand where the functions here are called.

/// Ends the process as a kill would, if the failpoint `name` says so: nothing is flushed or dropped.
#[cfg_attr(not(feature = "failpoints"), expect(unused_variables, reason = "the macro is empty"))]
pub(crate) fn die_at(name: &str) {
    fail::fail_point!(name, |_| std::process::abort());
}

/// The number that the failpoint `name` gives, or `otherwise`.
#[cfg_attr(not(feature = "failpoints"), expect(unused_variables, reason = "the macro is empty"))]
pub(crate) fn number_at(name: &str, otherwise: f64) -> f64 {
    fail::fail_point!(name, |text| text.and_then(|t| t.parse().ok()).unwrap_or(otherwise));
    otherwise
}

/// Panics if the failpoint `name` says so.
#[cfg_attr(not(feature = "failpoints"), expect(unused_variables, reason = "the macro is empty"))]
pub(crate) fn panic_at(name: &str) {
    fail::fail_point!(name);
}
