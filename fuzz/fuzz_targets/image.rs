#![no_main]

#[path = "../../tests/it/hostile/image.rs"]
mod law;

libfuzzer_sys::fuzz_target!(init: selfstream_fuzz::prepare(), |input: &[u8]| {
    law::check(input);
});
