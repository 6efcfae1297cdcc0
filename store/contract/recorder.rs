//! The preloaded library of `tests/recorder.c`, compiled for the test that wants it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles the library into `directory`.
pub fn compiled(directory: &Path) -> PathBuf {
    let (source, library) =
        (concat!(env!("CARGO_MANIFEST_DIR"), "/tests/recorder.c"), directory.join("recorder.so"));
    let cc = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut command = Command::new(&cc);
    command.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).args([source, "-ldl"]);
    let status =
        command.status().unwrap_or_else(|error| panic!("{cc:?}, the compiler that Rust links with: {error}"));
    assert!(status.success());
    library
}
