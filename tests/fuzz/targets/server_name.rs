//! Any text is a server name or is refused; what it means can be written down and read again.
#![no_main]

use hearth_federation::server_name::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(address) = parse(text) else { return };
    let written = match address.port {
        Some(port) => format!("{}:{port}", address.host),
        None => address.host.to_string(),
    };
    assert_eq!(parse(&written).as_ref(), Ok(&address));
});
