//! What was acknowledged survives a power cut.
//!
//! A child's writes, syncs and acknowledgements are recorded in their order. Then the power is cut at recorded
//! moments: a file holds what was written before its last finished sync began, and any part of what was written
//! since; a directory holds the names as of its last sync, and maybe some later changes. Each such image must open
//! and hold all that had been acknowledged by then.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

#[path = "../contract/recorder.rs"]
mod recorder;
#[path = "../contract/workload.rs"]
mod workload;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hearth_store::{Blob, Order, Space, Store, Table};
use workload::{acknowledged, check, child, piling_child};

/// The rows of the fixtures.
const ROWS: Table<u64, Blob> = Table::new("rows", Space(0x40));
const IMAGES: usize = 48;
const SECTOR: usize = 512;

/// The child process of the other test; by itself it does nothing.
#[test]
fn writer() {
    workload::run_if_child();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_power_cuts() {
    survives_power_cuts(false).await;
}

/// What goes makes room in sled's files, and is not needed any more only when it is gone on the disk too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_power_cuts_while_much_is_deleted() {
    survives_power_cuts(true).await;
}

async fn survives_power_cuts(piles: bool) {
    let dir = tempfile::tempdir().unwrap();
    let data = std::fs::canonicalize(dir.path()).unwrap().join("data");
    std::fs::create_dir(&data).unwrap();
    let (library, log) = (recorder::compiled(dir.path()), dir.path().join("log"));
    for millis in [1000, 500, 500] {
        let mut command = if piles { piling_child(&data.join("store")) } else { child(&data.join("store")) };
        command.env("LD_PRELOAD", &library).env("RECORDER_DIRECTORY", &data).env("RECORDER_LOG", &log);
        let command = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::inherit());
        let mut child = command.spawn().unwrap();
        wait_for_acknowledgement(&log);
        std::thread::sleep(Duration::from_millis(millis));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let bytes = std::fs::read(&log).unwrap();
    let records = parse(&bytes);
    let moments: Vec<_> =
        (0..records.len()).filter(|at| matches!(records[*at].op, b'S' | b'E' | b'R' | b'U')).collect();
    let mut random = Random(7);
    let mut cuts: Vec<_> = (0..IMAGES).map(|_| moments[random.below(moments.len())]).collect();
    // The first moments, when the store is made, and the very last.
    cuts.extend(moments.iter().take(12));
    cuts.extend(moments.last());
    // When a process opens what the one before it left behind when it was killed.
    let syncs = moments.iter().copied().filter(|at| matches!(records[*at].op, b'S' | b'E'));
    let syncs: Vec<_> = syncs.map(|at| (at, records[at].number >> 32)).collect();
    let restarts = (1..syncs.len()).filter(|at| syncs[*at].1 != syncs[at - 1].1);
    for restart in restarts.collect::<Vec<_>>() {
        cuts.extend(syncs[restart..].iter().take(12).map(|(at, _)| *at));
    }
    cuts.sort_unstable();
    let mut disk = Disk::new(&data);
    let (mut said, mut at, mut tried) = (String::new(), 0, 0);
    for cut in cuts {
        for record in &records[at..cut] {
            if record.op == b'A' {
                said.push_str(std::str::from_utf8(record.a).unwrap());
            }
            disk.take(record);
        }
        at = cut;
        let (image, mode) = (tempfile::tempdir().unwrap(), random.below(3));
        disk.write_image(&image.path().join("data"), mode, &mut random);
        let acks = acknowledged(&said);
        println!("cut at record {cut} of {}, mode {mode}, {} acknowledged", records.len(), acks.len());
        check(&image.path().join("data/store"), &acks).await;
        tried += acks.len();
    }
    assert!(tried > if piles { 200 } else { 1000 }, "too little was acknowledged to prove anything");
}

/// Kills and power cuts while a store is made, is taken over from an older format, or gets the journal that it lacks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_opens_again_whenever_its_making_was_cut_off() {
    let (old, lacking) = ("hearth-store 1 sled\n", "hearth-store 2 sled\n");
    for format in [None, Some(old), Some(lacking)] {
        let dir = tempfile::tempdir().unwrap();
        let data = std::fs::canonicalize(dir.path()).unwrap().join("data");
        std::fs::create_dir(&data).unwrap();
        let (library, log) = (recorder::compiled(dir.path()), dir.path().join("log"));
        if let Some(format) = format {
            let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-1");
            copy(&fixture, &data.join("store"));
            std::fs::write(data.join("store/format"), format).unwrap();
        }
        let mut disk = Disk::new(&data);
        disk.add_existing(&data);
        let mut command = workload::opening_child(&data.join("store"));
        command.env("LD_PRELOAD", &library).env("RECORDER_DIRECTORY", &data).env("RECORDER_LOG", &log);
        assert!(command.stdout(std::process::Stdio::null()).status().unwrap().success());
        let bytes = std::fs::read(&log).unwrap();
        let mut random = Random(7);
        let mut cuts = 0;
        for record in parse(&bytes) {
            disk.take(&record);
            // Of what sled writes, a part will do.
            if record.op == b'A' || record.op == b'W' && record.a.len() > 4096 && random.below(4) > 0 {
                continue;
            }
            cuts += 1;
            // A kill leaves everything that was written.
            for mode in [2, random.below(2)] {
                let image = tempfile::tempdir().unwrap();
                disk.write_image(&image.path().join("data"), mode, &mut random);
                let opened = Store::open_sled(image.path().join("data/store"), workload::options()).await;
                let store =
                    opened.unwrap_or_else(|error| panic!("{format:?}, cut {cuts}, mode {mode}: {error}"));
                let rows = store.range(&ROWS, ROWS.all(), Order::Forward, 100).await.unwrap();
                assert_eq!(rows.len(), if format.is_some() { 20 } else { 0 });
                store.close().await;
            }
        }
        assert!(cuts > 10, "{cuts}");
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => _ = std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap(),
        }
    }
}

fn wait_for_acknowledgement(log: &Path) {
    let before = std::fs::metadata(log).map_or(0, |log| log.len()) as usize;
    for _ in 0..1500 {
        std::thread::sleep(Duration::from_millis(20));
        let bytes = std::fs::read(log).unwrap_or_default();
        if bytes.get(before..).is_some_and(|new| new.windows(4).any(|word| word == b"ack ")) {
            return;
        }
    }
    panic!("the child acknowledged nothing");
}

struct Record<'a> {
    op: u8,
    inode: u64,
    number: u64,
    a: &'a [u8],
    b: &'a [u8],
}

/// All whole records: a killed child may leave the last one unfinished.
fn parse(mut bytes: &[u8]) -> Vec<Record<'_>> {
    let mut records = Vec::new();
    while bytes.len() >= 25 {
        let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
        let length = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        let (op, inode, number, a, b) = (bytes[0], word(1), word(9), length(17), length(21));
        if bytes.len() < 25 + a + b {
            break;
        }
        let (a, b) = (&bytes[25..25 + a], &bytes[25 + a..25 + a + b]);
        bytes = &bytes[25 + a.len() + b.len()..];
        records.push(Record { op, inode, number, a, b });
    }
    records
}

/// A file: what is on the disk, and what may be.
#[derive(Clone, Default)]
struct Contents {
    durable: Vec<u8>,
    /// How many changes `durable` has seen.
    applied: usize,
    pending: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Cut(usize),
}

/// A change of names.
#[derive(Clone)]
enum Naming {
    File(PathBuf, usize),
    Directory(PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

struct Disk {
    root: PathBuf,
    files: Vec<Contents>,
    /// The file that an inode is now, for inodes are used again.
    by_inode: HashMap<u64, usize>,
    directories: HashMap<u64, PathBuf>,
    names: BTreeMap<PathBuf, Option<usize>>,
    unsynced_names: Vec<Naming>,
    syncs: HashMap<u64, usize>,
}

impl Disk {
    fn new(root: &Path) -> Self {
        use std::os::unix::fs::MetadataExt;
        let inode = std::fs::metadata(root).unwrap().ino();
        Self {
            root: root.to_owned(),
            files: Vec::new(),
            by_inode: HashMap::new(),
            directories: HashMap::from([(inode, root.to_owned())]),
            names: BTreeMap::new(),
            unsynced_names: Vec::new(),
            syncs: HashMap::new(),
        }
    }

    /// What is there before anything is recorded, and on the disk.
    fn add_existing(&mut self, directory: &Path) {
        use std::os::unix::fs::MetadataExt;
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let inode = std::fs::metadata(&path).unwrap().ino();
            if path.is_dir() {
                self.directories.insert(inode, path.clone());
                self.names.insert(path.clone(), None);
                self.add_existing(&path);
            } else {
                self.files.push(Contents { durable: std::fs::read(&path).unwrap(), ..Contents::default() });
                self.by_inode.insert(inode, self.files.len() - 1);
                self.names.insert(path, Some(self.files.len() - 1));
            }
        }
    }

    fn take(&mut self, record: &Record<'_>) {
        let path = |bytes| PathBuf::from(std::str::from_utf8(bytes).unwrap());
        match record.op {
            b'C' => {
                self.files.push(Contents::default());
                self.by_inode.insert(record.inode, self.files.len() - 1);
                self.unsynced_names.push(Naming::File(path(record.a), self.files.len() - 1));
            }
            b'M' => {
                self.directories.insert(record.inode, path(record.a));
                self.unsynced_names.push(Naming::Directory(path(record.a)));
            }
            b'R' => self.unsynced_names.push(Naming::Rename(path(record.a), path(record.b))),
            b'U' => self.unsynced_names.push(Naming::Remove(path(record.a))),
            b'W' => self.file(record).pending.push(Change::Write(record.number as usize, record.a.to_vec())),
            b'T' => self.file(record).pending.push(Change::Cut(record.number as usize)),
            b'S' if self.directories.contains_key(&record.inode) => {}
            b'S' => {
                let file = self.file(record);
                let upto = file.applied + file.pending.len();
                self.syncs.insert(record.number, upto);
            }
            b'E' => match self.directories.get(&record.inode) {
                Some(directory) => self.sync_names(&directory.clone()),
                None => {
                    let upto = self.syncs.remove(&record.number).unwrap();
                    self.file(record).sync(upto);
                }
            },
            _ => {}
        }
    }

    fn file(&mut self, record: &Record<'_>) -> &mut Contents {
        &mut self.files[self.by_inode[&record.inode]]
    }

    /// The names in one directory reach the disk; what happened in others stays open.
    fn sync_names(&mut self, directory: &Path) {
        let (now, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.unsynced_names)
            .into_iter()
            .partition(|naming| naming.path().parent() == Some(directory));
        for naming in &now {
            naming.apply(&mut self.names);
        }
        self.unsynced_names = later;
    }

    /// Mode 0: only what was synced. 1: any part of the rest. 2: all of the rest.
    fn write_image(&self, target: &Path, mode: usize, random: &mut Random) {
        let mut names = self.names.clone();
        let upto = [0, random.below(self.unsynced_names.len() + 1), self.unsynced_names.len()][mode];
        for naming in &self.unsynced_names[..upto] {
            naming.apply(&mut names);
        }
        std::fs::create_dir_all(target).unwrap();
        for (path, file) in &names {
            let path = target.join(path.strip_prefix(&self.root).unwrap());
            if !path.parent().is_some_and(Path::is_dir) {
                continue;
            }
            match file {
                None => std::fs::create_dir_all(path).unwrap(),
                Some(file) => std::fs::write(path, self.files[*file].image(mode, random)).unwrap(),
            }
        }
    }
}

impl Naming {
    fn path(&self) -> &Path {
        match self {
            Self::File(path, _) | Self::Directory(path) | Self::Rename(_, path) | Self::Remove(path) => path,
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, Option<usize>>) {
        match self {
            Self::File(path, file) => _ = names.insert(path.clone(), Some(*file)),
            Self::Directory(path) => _ = names.insert(path.clone(), None),
            Self::Rename(from, to) => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
            Self::Remove(path) => _ = names.remove(path),
        }
    }
}

impl Contents {
    fn sync(&mut self, upto: usize) {
        let count = upto.saturating_sub(self.applied);
        for change in self.pending.drain(..count) {
            change.apply(&mut self.durable);
        }
        self.applied += count;
    }

    fn image(&self, mode: usize, random: &mut Random) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        for change in &self.pending {
            match (mode, change) {
                (0, _) => {}
                (1, Change::Write(at, data)) => {
                    let kept = random.below(4);
                    for (n, sector) in data.chunks(SECTOR).enumerate() {
                        if kept == 3 || kept > 0 && random.below(2) == 0 {
                            Change::Write(at + n * SECTOR, sector.to_vec()).apply(&mut bytes);
                        }
                    }
                }
                (1, Change::Cut(_)) if random.below(2) == 0 => {}
                (_, change) => change.apply(&mut bytes),
            }
        }
        bytes
    }
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(at, data) => {
                let end = at + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*at..end].copy_from_slice(data);
            }
            Self::Cut(length) => bytes.resize(*length, 0),
        }
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}
