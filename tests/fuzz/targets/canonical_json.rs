//! Any text is canonical JSON, can be made so, or is refused; what was made so stays as it is.
#![no_main]

use hearth_dag::canonical::{Object, Value, to_canonical};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for strict in [false, true] {
        if let Ok(canonical) = to_canonical(text, strict) {
            assert_eq!(to_canonical(&canonical, strict).as_ref(), Ok(&canonical));
        }
        if let Ok(object) = Object::parse(text, strict) {
            let written = object.to_canonical();
            let again = Object::parse(&written, strict).expect("what was written can be read");
            assert_eq!(again.to_canonical(), written);
        }
        // Not only objects.
        let _ = Value::parse(text, strict);
    }
});
