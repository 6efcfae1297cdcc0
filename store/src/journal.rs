//! The journal: what the last groups of commits wrote, on the disk before the engine has it there.
//!
//! * One file of a bounded length. It is written from its beginning again once the engine has all of it on the disk.
//! * A group is one record with its checksum, in blocks of its own: writing one never touches what was durable before.
//!   Each block says whether it begins a record, so that nothing inside of one is ever taken for another.
//! * Batches are numbered without a gap, and each record says up to which number the engine had all of it on the disk: so
//!   records say by themselves which of them are still needed, in which order, and whether one of them is missing. A
//!   record torn in writing is the last one, and was never acknowledged.
//! * Before it is written from its beginning, its first block says up to which batch the engine has all. So a record that
//!   is missing between others is known for what it is: written over by one that was torn, or damaged and needed.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};

use crate::group::Rows;
use crate::sled::damaged;
use crate::{COMMIT_BYTES, StoreError};

const NAME: &str = "journal";
const NEW_NAME: &str = "journal.new";
const HEADER: &[u8] = b"hearth-journal 1\n";
/// What file systems and disks write at once.
const BLOCK: usize = 4096;
/// Where in the first block the mark stands: a number and its checksum, in a sector of its own.
const MARK_AT: usize = 1024;
const MARK: usize = 12;
/// How long the file gets, and what is read of it on opening.
const LENGTH_MAX: usize = 4 * 1024 * 1024;
/// The longest record: larger than any commit, and than what is gathered of several. A longer one is left to the engine.
const RECORD_MAX: usize = 5 * COMMIT_BYTES / 2;
/// Memory that is kept from one record to the next.
const KEPT: usize = 1024 * 1024;
/// By so many bytes of zeros the file grows: what is overwritten costs less to sync than what is appended.
const GROW: usize = 16 * BLOCK;
/// The first byte of a block that begins a record.
const BEGINS: u8 = 3;
/// The same, of the records of before: they do not say what the engine had on the disk.
const BEGINS_OLD: u8 = 1;
/// The first byte of a block that goes on with one.
const GOES_ON: u8 = 2;
/// Checksum and length.
const FRAME: usize = 8;
/// Instead of the length of a value: the row is deleted.
const DELETED: u32 = u32::MAX;

pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    /// Where the next record goes.
    at: usize,
    /// The last batch that the engine has on the disk with all before it.
    settled: u64,
    /// The same, as the file says it on the disk.
    marked: Option<u64>,
    /// How long the file is.
    length: usize,
    record: Vec<u8>,
    /// The record in blocks.
    blocks: Vec<u8>,
}

/// Some batches that were written together.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// The number of the first batch.
    pub(crate) first: u64,
    /// The last batch that the engine had on the disk with all before it, if that is known.
    pub(crate) settled: Option<u64>,
    pub(crate) batches: Vec<Vec<Row>>,
    /// Where it lies in the file.
    pub(crate) bytes: Range<usize>,
}

/// A record that should be there, and is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    /// Where it should begin.
    pub(crate) at: usize,
    /// The first batch that is missing.
    pub(crate) first: u64,
    /// The next one that is there.
    pub(crate) next: u64,
    /// The engine has all of it on the disk.
    pub(crate) is_covered: bool,
}

/// What became of batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Appended {
    Durable,
    /// They fit once the journal begins anew.
    Full,
    TooLong,
}

// What fits into a record fits into a journal.
const _: () = assert!((FRAME + RECORD_MAX) / (BLOCK - 1) + 2 <= LENGTH_MAX / BLOCK);

/// A key and its value, if the row was not deleted.
pub(crate) type Row = (Vec<u8>, Option<Vec<u8>>);

impl Journal {
    /// An empty one, in place of whatever is there: it has its name once it is whole on the disk. The caller syncs the
    /// directory.
    pub(crate) fn create(directory: &Path) -> Result<Self, StoreError> {
        let (path, new) = (directory.join(NAME), directory.join(NEW_NAME));
        let make = || {
            // Not through an existing file, which somebody may have linked.
            match fs::remove_file(&new) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = File::options().read(true).write(true).create_new(true).open(&new)?;
            let mut header = vec![0; BLOCK];
            header[..HEADER.len()].copy_from_slice(HEADER);
            file.write_all(&header)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            Ok(file)
        };
        let file = make().map_err(|error| StoreError::io(&path, "making the journal", error))?;
        let (record, blocks) = (Vec::new(), Vec::new());
        Ok(Self { path, file, at: BLOCK, settled: 0, marked: None, length: BLOCK, record, blocks })
    }

    /// The journal and all whole records in it, in the order of their batches; `None` if there is none.
    pub(crate) fn open(directory: &Path) -> Result<Option<(Self, Vec<Record>)>, StoreError> {
        let path = directory.join(NAME);
        let opened = File::options().read(true).write(true).open(&path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io(&path, "opening the journal", error)),
        };
        // Pages that were read ahead come in large pieces, and each small write would look through one.
        let _ = fadvise(&file, 0, None, Advice::Random);
        // What a process wrote that was killed then may be whole, and not on the disk: the engine must not have it first.
        let synced = file.sync_data();
        synced.map_err(|error| StoreError::io(&path, "waiting for the journal", error))?;
        let mut bytes = Vec::new();
        let read = (&file).take(LENGTH_MAX as u64 + 1).read_to_end(&mut bytes);
        read.map_err(|error| StoreError::io(&path, "reading the journal", error))?;
        let _ = fadvise(&file, 0, None, Advice::DontNeed);
        if bytes.len() > LENGTH_MAX || bytes.len() < BLOCK || !bytes.starts_with(HEADER) {
            return Err(damaged(&path, "this is not the journal of a store"));
        }
        let begins =
            (BLOCK..bytes.len()).step_by(BLOCK).filter(|at| matches!(bytes[*at], BEGINS | BEGINS_OLD));
        let mut records: Vec<_> = begins.filter_map(|at| parse(&bytes, at)).collect();
        records.sort_by_key(|record| record.first);
        let length = bytes.len() / BLOCK * BLOCK;
        let (record, blocks) = (Vec::new(), Vec::new());
        let marked = mark_of(&bytes);
        let journal = Self { path, file, at: BLOCK, settled: 0, marked, length, record, blocks };
        Ok(Some((journal, records)))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns when the batches, of which `last` is the number of the last one, are on the disk, or when they cannot be
    /// here.
    pub(crate) fn append(&mut self, last: u64, batches: &[Rows<'_>]) -> Result<Appended, StoreError> {
        if !self.encode(last, batches) {
            return Ok(Appended::TooLong);
        }
        if self.at + self.blocks.len() > LENGTH_MAX {
            return Ok(Appended::Full);
        }
        if self.at == BLOCK {
            self.mark()?;
        }
        let end = self.at + self.blocks.len();
        let mut write = || {
            if self.length < end {
                let length = (end + GROW).min(LENGTH_MAX);
                // Block by block, see `open`.
                for at in (self.length..length).step_by(BLOCK) {
                    self.file.write_all_at(&[0; BLOCK], at as u64)?;
                }
                self.length = length;
            }
            self.file.write_all_at(&self.blocks, self.at as u64)?;
            self.file.sync_data()
        };
        write().map_err(|error| StoreError::io(&self.path, "writing the journal", error))?;
        self.at = end;
        self.record.shrink_to(KEPT);
        self.blocks.shrink_to(KEPT);
        Ok(Appended::Durable)
    }

    /// For when the engine has all of it on the disk, which ends with the batch `last`.
    pub(crate) fn rewind(&mut self, last: u64) {
        self.at = BLOCK;
        self.settled = last;
    }

    /// What the journal says on the disk of how far the engine has all.
    pub(crate) fn marked(&self) -> Option<u64> {
        self.marked
    }

    /// Returns when it says so: what is in it may be written over then.
    pub(crate) fn mark(&mut self) -> Result<(), StoreError> {
        if self.marked == Some(self.settled) {
            return Ok(());
        }
        let number = self.settled.to_be_bytes();
        let mark = [&number[..], &crc32fast::hash(&number).to_be_bytes()].concat();
        let written = self.file.write_all_at(&mark, MARK_AT as u64).and_then(|()| self.file.sync_data());
        written.map_err(|error| StoreError::io(&self.path, "writing the journal", error))?;
        self.marked = Some(self.settled);
        Ok(())
    }

    /// Makes a record of the batches, unless it gets too long.
    fn encode(&mut self, last: u64, batches: &[Rows<'_>]) -> bool {
        let out = &mut self.record;
        out.clear();
        out.extend_from_slice(&[0; FRAME]);
        let first = last + 1 - batches.len() as u64;
        out.extend_from_slice(&first.to_be_bytes());
        out.extend_from_slice(&self.settled.to_be_bytes());
        out.extend_from_slice(&(batches.len() as u32).to_be_bytes());
        for rows in batches {
            out.extend_from_slice(&(rows.len() as u32).to_be_bytes());
            for (key, value) in rows {
                out.extend_from_slice(&(key.len() as u32).to_be_bytes());
                out.extend_from_slice(
                    &value.as_ref().map_or(DELETED, |value| value.len() as u32).to_be_bytes(),
                );
                out.extend_from_slice(key);
                out.extend_from_slice(value.as_deref().unwrap_or_default());
                if out.len() > RECORD_MAX {
                    return false;
                }
            }
        }
        let length = (out.len() - FRAME) as u32;
        out[4..FRAME].copy_from_slice(&length.to_be_bytes());
        let checksum = crc32fast::hash(&out[4..]);
        out[..4].copy_from_slice(&checksum.to_be_bytes());
        self.blocks.clear();
        for (n, piece) in out.chunks(BLOCK - 1).enumerate() {
            self.blocks.push(if n == 0 { BEGINS } else { GOES_ON });
            self.blocks.extend_from_slice(piece);
        }
        self.blocks.resize(self.blocks.len().next_multiple_of(BLOCK), 0);
        true
    }
}

/// What the first block says of how far the engine has all.
fn mark_of(bytes: &[u8]) -> Option<u64> {
    let mut mark = bytes.get(MARK_AT..MARK_AT + MARK)?;
    let number: &[u8; 8] = take(&mut mark)?;
    (self::number(&mut mark)? == crc32fast::hash(number)).then(|| u64::from_be_bytes(*number))
}

/// The record that begins with this block, if it is whole.
fn parse(file: &[u8], at: usize) -> Option<Record> {
    let blocks = &file[at..];
    let mut frame = blocks.get(1..1 + FRAME)?;
    let (checksum, length) = (number(&mut frame)?, number(&mut frame)? as usize);
    if length > RECORD_MAX {
        return None;
    }
    let end = FRAME + length;
    let mut bytes = Vec::with_capacity(end.next_multiple_of(BLOCK));
    for (n, block) in blocks.chunks(BLOCK).take(end.div_ceil(BLOCK - 1)).enumerate() {
        if n > 0 && block[0] != GOES_ON {
            return None;
        }
        bytes.extend_from_slice(&block[1..]);
    }
    if crc32fast::hash(bytes.get(4..end)?) != checksum {
        return None;
    }
    let mut input = &bytes[FRAME..end];
    let first = u64::from_be_bytes(*take(&mut input)?);
    let settled = match blocks[0] {
        BEGINS => Some(u64::from_be_bytes(*take(&mut input)?)),
        _ => None,
    };
    let mut batches = Vec::new();
    for _ in 0..number(&mut input)? {
        let mut rows = Vec::new();
        for _ in 0..number(&mut input)? {
            let (key, value) = (number(&mut input)?, number(&mut input)?);
            let key = bytes_of(&mut input, key)?;
            let value = if value == DELETED { None } else { Some(bytes_of(&mut input, value)?) };
            rows.push((key, value));
        }
        batches.push(rows);
    }
    let bytes = at..at + end.div_ceil(BLOCK - 1) * BLOCK;
    input.is_empty().then_some(Record { first, settled, batches, bytes })
}

impl Record {
    /// The number of the batch after the last one.
    fn end(&self) -> u64 {
        self.first + self.batches.len() as u64
    }
}

/// The first record that is missing among those since the journal was last begun, the newest of which is there. `marked`:
/// how far the engine has all, as the journal says it; `last`: the batch that the engine says that it ends with.
pub(crate) fn gap(records: &[Record], marked: Option<u64>, last: u64) -> Option<Gap> {
    let newest = records.last()?;
    let settled = newest.settled?;
    let (mut at, mut first) = (BLOCK, settled + 1);
    for record in records.iter().filter(|record| record.settled == Some(settled)) {
        if record.first > first {
            // Before anything is written over, the engine has all, and says so.
            let is_covered = last >= newest.end()
                || match marked {
                    Some(marked) => marked + 1 >= newest.end(),
                    None => last + 1 >= newest.end(),
                };
            return Some(Gap { at, first, next: record.first, is_covered });
        }
        (at, first) = (record.bytes.end, record.end());
    }
    None
}

/// What is to be applied again of records in their order, to an engine that says that it ends with the batch `last`:
/// batches with their numbers, without a gap. Whatever the engine may have lost of what it had not on the disk is among
/// them. With the number of the next one there is, if one before it is missing.
pub(crate) fn needed(records: &[Record], last: u64) -> (Vec<(u64, &[Row])>, Option<u64>) {
    let Some(newest) = records.last().filter(|newest| newest.end() > last) else { return (Vec::new(), None) };
    // What was written before the engine had all of it is partly overwritten already: only what is whole up to the newest.
    let mut run = records.len() - 1;
    while run > 0 && records[run - 1].end() == records[run].first {
        run -= 1;
    }
    let is_missing = records[run].first > last + 1;
    let after = if is_missing { last } else { newest.settled.unwrap_or(0) };
    let (mut batches, mut expected) = (Vec::new(), None);
    for record in records.iter().skip(if is_missing { 0 } else { run }) {
        for (number, rows) in (record.first..).zip(&record.batches).filter(|(number, _)| *number > after) {
            let next = expected.unwrap_or(if is_missing { last + 1 } else { number });
            if number > next {
                return (batches, Some(number));
            }
            batches.push((number, rows.as_slice()));
            expected = Some(number + 1);
        }
    }
    (batches, None)
}

fn take<'a, const N: usize>(input: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (taken, rest) = input.split_first_chunk()?;
    *input = rest;
    Some(taken)
}

fn number(input: &mut &[u8]) -> Option<u32> {
    take(input).map(|bytes| u32::from_be_bytes(*bytes))
}

fn bytes_of(input: &mut &[u8], length: u32) -> Option<Vec<u8>> {
    let (taken, rest) = input.split_at_checked(length as usize)?;
    *input = rest;
    Some(taken.to_vec())
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    /// One batch, which writes its number and deletes another row.
    fn batch(number: u64, length: usize) -> Rows<'static> {
        let value = vec![number as u8; length];
        let key = number.to_be_bytes().to_vec();
        let written = (Cow::<[u8]>::Owned(key), Some(Cow::<[u8]>::Owned(value)));
        Rows::from([written, (Cow::Borrowed(&b"gone"[..]), None)])
    }

    fn numbers(records: &[Record]) -> Vec<(u64, usize)> {
        records.iter().map(|record| (record.first, record.batches.len())).collect()
    }

    fn reopened(directory: &Path) -> (Journal, Vec<Record>) {
        Journal::open(directory).unwrap().unwrap()
    }

    #[test]
    fn what_was_appended_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Journal::open(dir.path()).unwrap().is_none());
        let mut journal = Journal::create(dir.path()).unwrap();
        assert_eq!(journal.append(1, &[batch(1, 10)]).unwrap(), Appended::Durable);
        assert_eq!(journal.append(3, &[batch(2, 5000), batch(3, 0)]).unwrap(), Appended::Durable);
        let (_, records) = reopened(dir.path());
        assert_eq!(numbers(&records), [(1, 1), (2, 2)]);
        let mut rows = records[1].batches[0].clone();
        rows.sort();
        assert_eq!(rows, [(2_u64.to_be_bytes().to_vec(), Some(vec![2; 5000])), (b"gone".to_vec(), None)]);
    }

    #[test]
    fn a_record_that_is_not_whole_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(dir.path()).unwrap();
        for number in 1..=3 {
            assert_eq!(journal.append(number, &[batch(number, 6000)]).unwrap(), Appended::Durable);
        }
        let whole = fs::read(journal.path()).unwrap();
        // Each record has two blocks. One bit is flipped at a time.
        for at in (3 * BLOCK..3 * BLOCK + 6000).step_by(97) {
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            fs::write(journal.path(), &bytes).unwrap();
            assert_eq!(numbers(&reopened(dir.path()).1), [(1, 1), (3, 1)], "byte {at}");
        }
        for length in (5 * BLOCK + 1..5 * BLOCK + 6000).step_by(501) {
            fs::write(journal.path(), &whole[..length]).unwrap();
            assert_eq!(numbers(&reopened(dir.path()).1), [(1, 1), (2, 1)], "cut to {length}");
        }
    }

    #[test]
    fn it_is_full_at_its_bound_and_goes_on_from_its_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(dir.path()).unwrap();
        let mut number = 0;
        while journal.append(number + 1, &[batch(number + 1, 100_000)]).unwrap() == Appended::Durable {
            number += 1;
        }
        assert!(number > 30);
        while journal.append(number + 1, &[batch(number + 1, 10)]).unwrap() == Appended::Durable {
            number += 1;
        }
        assert_eq!(fs::metadata(journal.path()).unwrap().len(), LENGTH_MAX as u64);
        assert_eq!(reopened(dir.path()).1.len() as u64, number);
        journal.rewind(number);
        // The first makes room for itself where several smaller ones fit.
        assert_eq!(journal.append(number + 1, &[batch(number + 1, 10)]).unwrap(), Appended::Durable);
        assert_eq!(journal.append(number + 2, &[batch(number + 2, 10)]).unwrap(), Appended::Durable);
        let (_, records) = reopened(dir.path());
        assert_eq!(records.last().map(|record| record.first), Some(number + 2));
        assert!(records.iter().skip(1).zip(&records).all(|(next, record)| next.first == record.first + 1));
        assert_eq!(records[0].first, 2, "the first was overwritten");
    }

    /// A user may write what looks like a record, and it may come to lie where one could begin.
    #[test]
    fn what_a_record_contains_is_never_taken_for_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(dir.path()).unwrap();
        assert_eq!(journal.append(9, &[batch(9, 10)]).unwrap(), Appended::Durable);
        let forged = journal.blocks.clone();
        // Around the one that puts it at the beginning of the second block.
        for shift in BLOCK - 50..BLOCK - 20 {
            let value = [vec![0; shift], forged.clone()].concat();
            let rows = Rows::from([(Cow::Borrowed(&b"key"[..]), Some(Cow::Owned(value)))]);
            journal.rewind(0);
            assert_eq!(journal.append(1, &[rows]).unwrap(), Appended::Durable);
            let mut bytes = fs::read(journal.path()).unwrap();
            // The outer record is damaged, so that it is not passed over as a whole.
            bytes[BLOCK + 1] ^= 1;
            fs::write(journal.path(), &bytes).unwrap();
            assert!(reopened(dir.path()).1.iter().all(|record| record.first != 9), "shifted by {shift}");
        }
    }

    /// An engine may have lost what it had of earlier batches, and kept the last one.
    #[test]
    fn all_that_was_not_on_the_disk_yet_is_needed() {
        let record = |first, settled, batches: usize| Record {
            first,
            settled,
            batches: vec![Vec::new(); batches],
            bytes: 0..0,
        };
        let numbers = |records: &[Record], last| {
            let (batches, missing) = needed(records, last);
            (batches.into_iter().map(|(number, _)| number).collect::<Vec<_>>(), missing)
        };
        assert_eq!(numbers(&[], 7), (vec![], None));
        let records = [record(4, Some(2), 2), record(6, Some(5), 1), record(7, Some(5), 2)];
        assert_eq!(numbers(&records, 6), (vec![6, 7, 8], None));
        assert_eq!(numbers(&records, 8), (vec![6, 7, 8], None), "the engine says that it has all");
        assert_eq!(numbers(&records, 9), (vec![], None), "it made the last one durable by itself");
        assert_eq!(numbers(&records, 2), (vec![], Some(4)));
        // The first record since the engine had all was torn, over some of before.
        let records = [record(5, Some(3), 1), record(6, Some(3), 1)];
        assert_eq!(numbers(&records, 6), (vec![5, 6], None));
        // One is gone from the middle.
        let records = [record(4, Some(3), 1), record(6, Some(3), 1)];
        assert_eq!(numbers(&records, 5), (vec![6], None));
        assert_eq!(numbers(&records, 4), (vec![], Some(6)));
        assert_eq!(numbers(&records, 3), (vec![4], Some(6)));
        // Of before it was noted what the engine had.
        let records = [record(4, None, 2), record(6, None, 1)];
        assert_eq!(numbers(&records, 4), (vec![4, 5, 6], None));
    }

    #[test]
    fn a_record_that_is_missing_between_others_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(dir.path()).unwrap();
        journal.rewind(6);
        for number in [7, 8, 9] {
            journal.append(number, &[batch(number, 6000)]).unwrap();
        }
        let whole = fs::read(journal.path()).unwrap();
        let found = |bytes: &[u8], last| {
            fs::write(dir.path().join(NAME), bytes).unwrap();
            let (journal, records) = reopened(dir.path());
            (journal.marked(), gap(&records, journal.marked(), last))
        };
        assert_eq!(found(&whole, 6), (Some(6), None));
        // Records have two blocks each.
        for (block, missing) in [(1, Some((1, 7, 8))), (4, Some((3, 8, 9))), (6, None)] {
            let mut bytes = whole.clone();
            bytes[block * BLOCK + 50] ^= 1;
            let missing = |is_covered| {
                missing.map(|(block, first, next)| Gap { at: block * BLOCK, first, next, is_covered })
            };
            for last in [6, 8, 9] {
                assert_eq!(found(&bytes, last), (Some(6), missing(false)), "{block} {last}");
            }
            assert_eq!(found(&bytes, 12), (Some(6), missing(true)), "the engine went on by itself");
            // The engine had all, and began to write from the beginning.
            let mut later = bytes.clone();
            let number = 9_u64.to_be_bytes();
            later[MARK_AT..MARK_AT + 8].copy_from_slice(&number);
            later[MARK_AT + 8..MARK_AT + MARK].copy_from_slice(&crc32fast::hash(&number).to_be_bytes());
            assert_eq!(found(&later, 9), (Some(9), missing(true)), "{block}");
            // One from before there were marks: that the engine lacks the newest says that it is still needed.
            bytes[MARK_AT..MARK_AT + MARK].fill(0);
            for (last, is_covered) in [(8, false), (9, true)] {
                assert_eq!(found(&bytes, last), (None, missing(is_covered)), "{block} {last}");
            }
        }
    }

    #[test]
    fn what_is_too_long_is_left_to_the_engine() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(dir.path()).unwrap();
        assert_eq!(journal.append(1, &[batch(1, RECORD_MAX)]).unwrap(), Appended::TooLong);
        let many: Vec<_> = (1..=30).map(|number| batch(number, 100_000)).collect();
        assert_eq!(journal.append(30, &many).unwrap(), Appended::TooLong);
        assert!(reopened(dir.path()).1.is_empty());
    }

    #[test]
    fn something_else_under_its_name_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        for bytes in [&b""[..], b"PNG", &[0; 2 * BLOCK], &[b'x'; LENGTH_MAX + 1]] {
            fs::write(&path, bytes).unwrap();
            let error = Journal::open(dir.path()).err().unwrap().to_string();
            assert!(error.contains(&*path.to_string_lossy()) && error.contains("not the journal"), "{error}");
        }
    }
}
