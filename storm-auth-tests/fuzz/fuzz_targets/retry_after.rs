#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| storm_auth_fuzz::retry_after(data));
