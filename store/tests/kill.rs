//! A process that is killed at any moment has lost nothing that it acknowledged.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

#[path = "../contract/workload.rs"]
mod workload;

use std::io::Read;
use std::time::{Duration, Instant};

use workload::{Acknowledged, acknowledged, check, child};

const ROUNDS: u64 = 20;

/// The child process of the other test; by itself it does nothing.
#[test]
fn writer() {
    workload::run_if_child();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let mut said: Vec<Acknowledged> = Vec::new();
    let mut seed = 20_u64;
    for round in 0..ROUNDS {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        // Now and then while it opens, else while it writes.
        let (after_ack, millis) = (round % 5 != 0, 5 + (seed >> 33) % 250);
        let output = run_and_kill(&path, after_ack, Duration::from_millis(millis));
        let new = acknowledged(&output);
        assert!(!after_ack || !new.is_empty());
        said.extend(&new);
        let total = check(&path, &said).await;
        println!("round {round}: killed after {millis} ms, {} acknowledged, {total} in the store", new.len());
    }
    assert!(said.len() > 100);
}

fn run_and_kill(path: &std::path::Path, after_ack: bool, wait: Duration) -> String {
    let mut child = child(path).stderr(std::process::Stdio::inherit()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let (first, heard) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let (mut output, mut buffer) = (Vec::new(), [0; 65536]);
        loop {
            let read = stdout.read(&mut buffer).unwrap();
            output.extend_from_slice(&buffer[..read]);
            if read == 0 {
                return String::from_utf8(output).unwrap();
            }
            if output.windows(5).any(|word| word == b"\nack ") {
                let _ = first.send(());
            }
        }
    });
    if after_ack {
        let began = Instant::now();
        heard
            .recv_timeout(Duration::from_secs(30))
            .unwrap_or_else(|_| panic!("silent for {:?}", began.elapsed()));
    }
    std::thread::sleep(wait);
    // SIGKILL.
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap()
}
