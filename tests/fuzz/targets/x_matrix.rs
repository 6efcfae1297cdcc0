//! Any `Authorization` header is read or refused.
#![no_main]

use hearth_federation::x_matrix::{XMatrix, is_x_matrix};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(header) = std::str::from_utf8(data) else { return };
    if let Ok(signature) = XMatrix::parse(header) {
        assert!(is_x_matrix(header));
        assert!(!signature.key_id.is_empty());
    }
});
