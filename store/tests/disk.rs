//! The directory: one process at a time, only what is ours, a disk that is full, files that are damaged.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

#[path = "../contract/recorder.rs"]
mod recorder;
#[path = "../contract/workload.rs"]
mod workload;

use std::path::Path;
use std::process::{Command, Stdio};

use hearth_store::{Blob, Commit, CommitError, Order, Space, Store, StoreError, StoreOptions, Table};
use workload::{acknowledged, check, child, options};

const ROWS: Table<u64, Blob> = Table::new("rows", Space(0x40));

/// The child process of the other tests; by itself it does nothing.
#[test]
fn writer() {
    workload::run_if_child();
}

fn row(n: u64, length: usize) -> Commit {
    let mut commit = Commit::new();
    commit.put(&ROWS, &n, &Blob(vec![n as u8; length].into()));
    commit
}

async fn refusal(path: &Path) -> StoreError {
    let error = Store::open_sled(path, options()).await.unwrap_err();
    assert!(error.to_string().contains(&*path.to_string_lossy()), "names the path: {error}");
    error
}

#[tokio::test]
async fn a_second_process_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let mut first = child(&path).spawn().unwrap();
    let mut words = std::io::BufReader::new(first.stdout.take().unwrap());
    let mut line = String::new();
    while line.trim() != "open" {
        line.clear();
        std::io::BufRead::read_line(&mut words, &mut line).unwrap();
    }
    let error = refusal(&path).await;
    assert!(matches!(error, StoreError::Locked { holder: Some(pid), .. } if pid == first.id()), "{error}");
    first.kill().unwrap();
    first.wait().unwrap();
    Store::open_sled(&path, options()).await.unwrap().close().await;
}

#[tokio::test]
async fn the_same_process_is_refused_too() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_sled(dir.path(), options()).await.unwrap();
    assert!(matches!(refusal(dir.path()).await, StoreError::Locked { .. }));
    store.close().await;
    Store::open_sled(dir.path(), options()).await.unwrap();
}

#[tokio::test]
async fn a_directory_of_somebody_else_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("thesis.txt"), "precious").unwrap();
    assert!(matches!(refusal(dir.path()).await, StoreError::Foreign { .. }));
    let names: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["thesis.txt"]);
    std::fs::write(dir.path().join("format"), "PNG\n").unwrap();
    assert!(matches!(refusal(dir.path()).await, StoreError::Foreign { .. }));
    let file = dir.path().join("thesis.txt");
    assert!(matches!(refusal(&file).await, StoreError::Io { .. } | StoreError::Foreign { .. }));
}

#[tokio::test]
async fn a_newer_format_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    Store::open_sled(dir.path(), options()).await.unwrap().close().await;
    for (line, named) in [
        ("hearth-store 3 sled\n", "3 (sled)"),
        ("hearth-store 0 sled\n", "0 (sled)"),
        ("hearth-store 2 postgresql\n", "2 (postgresql)"),
    ] {
        std::fs::write(dir.path().join("format"), line).unwrap();
        let error = refusal(dir.path()).await;
        assert!(matches!(&error, StoreError::UnknownFormat { found, .. } if found == named), "{error}");
    }
}

#[tokio::test]
async fn a_store_that_was_never_finished_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("sled")).unwrap();
    std::fs::write(dir.path().join("sled/conf"), "half").unwrap();
    std::fs::write(dir.path().join("format"), "hearth-store 1 sled unfinished\n").unwrap();
    let store = Store::open_sled(dir.path(), options()).await.unwrap();
    store.commit(row(1, 10)).await.unwrap();
    store.close().await;
    let store = Store::open_sled(dir.path(), options()).await.unwrap();
    assert!(store.get(&ROWS, &1).await.unwrap().is_some());
}

/// Each released format has its fixture.
async fn opens(format: u32) {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/format-{format}"));
    copy(&fixture, dir.path());
    // The second time it has the newest one.
    for _ in 0..2 {
        let store = Store::open_sled(dir.path(), options()).await.unwrap();
        let rows = store.range(&ROWS, ROWS.all(), Order::Forward, 100).await.unwrap();
        let expected: Vec<_> = (0..20).map(|n| (n, Blob(vec![n as u8; 10].into()))).collect();
        assert_eq!(rows, expected);
        assert_eq!(store.watermark().get(), 20);
        store.close().await;
        let line = std::fs::read_to_string(dir.path().join("format")).unwrap();
        assert_eq!(line, "hearth-store 2 sled\n", "an older version refuses it by this");
    }
}

#[tokio::test]
async fn a_store_of_format_1_opens_and_gets_a_journal() {
    opens(1).await;
}

/// Its last commits are only in the journal.
#[tokio::test]
async fn a_store_of_format_2_opens() {
    opens(2).await;
}

/// `FIXTURE=DIR cargo test -p hearth-store --test disk makes_a_fixture` writes what the tests above read.
#[tokio::test]
async fn makes_a_fixture() {
    let Some(path) = std::env::var_os("FIXTURE") else { return };
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_sled(dir.path(), options()).await.unwrap();
    for n in 0..20 {
        let mut commit = row(n, 10);
        commit.position();
        store.commit(commit).await.unwrap();
    }
    // As a crash leaves it.
    copy(dir.path(), Path::new(&path));
    store.close().await;
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Damage {
    Noticed,
    /// Some rows are missing.
    Silent,
    /// What was overwritten was no longer in use.
    Harmless,
}

#[tokio::test]
async fn damaged_files_are_an_error_that_names_the_path() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    let store = Store::open_sled(&whole, options()).await.unwrap();
    for n in 0..300 {
        store.commit(row(n, 2000)).await.unwrap();
    }
    store.close().await;
    let damage = async |what: &str, change: &dyn Fn(&Path)| {
        let path = dir.path().join(what);
        copy(&whole, &path);
        change(&path.join("sled"));
        let read = async || {
            let store = Store::open_sled(&path, options()).await?;
            store.range(&ROWS, ROWS.all(), Order::Forward, 1000).await
        };
        match read().await {
            Err(error) => {
                assert!(matches!(error, StoreError::Damaged { .. } | StoreError::Io { .. }), "{error}");
                assert!(error.to_string().contains(&*path.to_string_lossy()), "names the path: {error}");
                Damage::Noticed
            }
            Ok(rows) if rows.len() < 300 => Damage::Silent,
            Ok(_) => Damage::Harmless,
        }
    };
    let emptied = damage("emptied", &|files| std::fs::write(files.join("db"), "").unwrap());
    assert!(emptied.await == Damage::Noticed);
    let garbage =
        damage("garbage", &|files| std::fs::write(files.join("db"), vec![b'x'; 2_000_000]).unwrap());
    assert!(garbage.await == Damage::Noticed);
    let gone = damage("gone", &|files| std::fs::remove_dir_all(files).unwrap());
    assert!(gone.await == Damage::Noticed);
    let mut outcomes = Vec::new();
    for seed in 1..=100_u64 {
        let overwrite = |files: &Path| {
            let mut bytes = std::fs::read(files.join("db")).unwrap();
            let at = (seed * 7_919_777) as usize % (bytes.len() - 5000);
            bytes[at..at + 5000].fill(0x5a);
            std::fs::write(files.join("db"), bytes).unwrap();
        };
        outcomes.push(damage(&format!("overwritten{seed}"), &overwrite).await);
    }
    // sled passes over a segment whose head is damaged; only the end of its log is sure to be missed.
    let count = |outcome| outcomes.iter().filter(|other| **other == outcome).count();
    let (noticed, silent) = (count(Damage::Noticed), count(Damage::Silent));
    println!("of 100 damages in the middle {noticed} were noticed, {silent} lost something without a word");
    assert!(silent <= 3 && noticed >= 10);
    // sled can do without this one, since its settings are always the same.
    std::fs::write(whole.join("sled/conf"), "garbage").unwrap();
    let store = Store::open_sled(&whole, options()).await.unwrap();
    assert_eq!(store.range(&ROWS, ROWS.all(), Order::Forward, 1000).await.unwrap().len(), 300);
}

#[tokio::test]
async fn below_the_reserve_writing_stops_and_reading_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_sled(dir.path(), options()).await.unwrap();
    store.commit(row(1, 10)).await.unwrap();
    store.close().await;
    // More than any disk has.
    let reserve = StoreOptions { disk_reserve: u64::MAX, ..options() };
    let store = Store::open_sled(dir.path(), reserve).await.unwrap();
    let error = store.commit(row(2, 10)).await.unwrap_err();
    assert!(
        matches!(error, CommitError::Store(StoreError::DiskReserve { reserve: u64::MAX, .. })),
        "{error}"
    );
    assert!(error.to_string().contains(&*dir.path().to_string_lossy()));
    assert!(store.get(&ROWS, &1).await.unwrap().is_some());
    assert!(store.get(&ROWS, &2).await.unwrap().is_none());
    store.close().await;
    let store = Store::open_sled(dir.path(), options()).await.unwrap();
    store.commit(row(2, 10)).await.unwrap();
}

/// Lets a child write until it dies, and returns what it had acknowledged and what it said at the end.
fn until_it_dies(mut command: Command) -> (Vec<workload::Acknowledged>, String) {
    let output = command.stderr(Stdio::piped()).output().unwrap();
    assert!(!output.status.success(), "a disk that fails ends the process");
    let said = String::from_utf8(output.stdout).unwrap();
    (acknowledged(&said), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_gets_full_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let data = std::fs::canonicalize(dir.path()).unwrap().join("data");
    std::fs::create_dir(&data).unwrap();
    let (library, path) = (recorder::compiled(dir.path()), data.join("store"));
    let mut said = Vec::new();
    for space in [3_000_000, 1_500_000, 700_000] {
        let mut command = child(&path);
        command.env("LD_PRELOAD", &library).env("RECORDER_DIRECTORY", &data);
        command.env("RECORDER_SPACE", space.to_string());
        let (new, complaint) = until_it_dies(command);
        assert!(
            complaint.contains("No space left") && complaint.contains(&*path.to_string_lossy()),
            "{complaint}"
        );
        said.extend(new);
        // There is space again.
        let total = check(&path, &said).await;
        println!("{space} bytes: {} acknowledged, {total} in the store", said.len());
    }
    assert!(said.len() > 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_tmpfs_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = Tmpfs::mount(dir.path()) else {
        println!("no right to mount a tmpfs; the test above and the one of the reserve stand for it");
        return;
    };
    let path = dir.path().join("store");
    let reserve = StoreOptions { disk_reserve: 4 * 1024 * 1024, ..options() };
    let store = Store::open_sled(&path, reserve.clone()).await.unwrap();
    let mut written = 0;
    let error = loop {
        match store.commit(row(written, 5000)).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, CommitError::Store(StoreError::DiskReserve { .. })), "{error}");
    assert!(store.get(&ROWS, &(written - 1)).await.unwrap().is_some());
    store.close().await;

    // Without a reserve it comes to the worst.
    let (said, complaint) = until_it_dies(child(&path));
    assert!(
        complaint.contains("No space left") && complaint.contains(&*path.to_string_lossy()),
        "{complaint}"
    );
    assert!(!said.is_empty());
    if let Err(error) = Store::open_sled(&path, options()).await {
        assert!(error.to_string().contains(&*path.to_string_lossy()), "{error}");
    }
    disk.resize("64m");
    check(&path, &said).await;
    let store = Store::open_sled(&path, reserve).await.unwrap();
    let rows = store.range(&ROWS, ROWS.all(), Order::Forward, usize::MAX).await.unwrap();
    assert_eq!(rows.len() as u64, written);
    store.commit(row(written, 5000)).await.unwrap();
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compacted_copy_has_the_same_rows_and_is_smaller() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    let store = Store::open_sled(&old, options()).await.unwrap();
    for round in 0..20_u64 {
        for n in 0..100 {
            let mut commit = row(n, 2000 + round as usize);
            commit.position();
            store.commit(commit).await.unwrap();
        }
    }
    let (epoch, watermark) = (store.epoch(), store.watermark());
    store.close().await;
    let copied = Store::compact(&old, &new, options()).await.unwrap();
    assert!(copied.rows >= 100);
    assert!(Store::compact(&old, &new, options()).await.is_err(), "never over something");
    let size = |path: &Path| std::fs::metadata(path.join("sled/db")).unwrap().len();
    assert!(size(&new) < size(&old));
    let store = Store::open_sled(&new, options()).await.unwrap();
    assert_eq!((store.epoch(), store.watermark()), (epoch, watermark));
    let rows = store.range(&ROWS, ROWS.all(), Order::Forward, 1000).await.unwrap();
    assert!(rows.len() == 100 && rows.iter().all(|(_, value)| value.0.len() == 2019));
}

/// A small disk of its own, where the tests have the right to mount one.
struct Tmpfs<'a>(&'a Path);

impl<'a> Tmpfs<'a> {
    fn mount(at: &'a Path) -> Option<Self> {
        let mut command = Command::new("mount");
        let mounted =
            command.args(["-t", "tmpfs", "-o", "size=16m", "tmpfs"]).arg(at).stderr(Stdio::null()).status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(at))
    }

    fn resize(&self, size: &str) {
        let status = Command::new("mount").args(["-o", &format!("remount,size={size}")]).arg(self.0).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}
