#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| glm4v_fuzz::records(data));
