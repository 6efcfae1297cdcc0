//! Files on their way in.
//! * Pieces are gathered in memory, then written in one visit to a thread that may block: every visit costs switches.
//! * What is gathered takes about as much memory as it has bytes, however small the pieces are that a client sends.
//! * A file that does not become whole is removed.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    mem,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::files::ReceiveError;

/// A smaller piece is copied to its neighbours: it may keep a far larger buffer of the connection in memory.
const SMALL: usize = 16 * 1024;

/// Bytes that are written by one call. For more, the kernel takes memory in larger units, which nobody has used lately:
/// a call of 1 MiB was measured to cost twice what eight of these do.
const AT_ONCE: usize = 128 * 1024;

/// Pieces that wait to be written.
#[derive(Debug, Default)]
pub struct Batch {
    pieces: Vec<Bytes>,
    /// Small ones that came last.
    small: Vec<u8>,
    pub bytes: usize,
}

impl Batch {
    pub fn add(&mut self, piece: Bytes) {
        self.bytes += piece.len();
        if piece.len() < SMALL {
            self.small.extend_from_slice(&piece);
        } else {
            self.end_small();
            self.pieces.push(piece);
        }
    }

    fn end_small(&mut self) {
        if !self.small.is_empty() {
            self.pieces.push(mem::take(&mut self.small).into());
        }
    }
}

/// A file that is being written. Removed when dropped, unless it became whole.
#[derive(Debug)]
pub struct Writer {
    file: File,
    place: PathBuf,
    whole: bool,
}

impl Writer {
    /// A new file. Refused while less than `reserve` bytes are free on its disk.
    pub fn create(root: &Path, place: PathBuf, reserve: u64) -> Result<Self, ReceiveError> {
        let file = match File::create_new(&place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_folders(root, &place).and_then(|()| File::create_new(&place))
            }
            made => made,
        };
        let writer = Self { file: file.map_err(refused)?, place, whole: false };
        let disk = rustix::fs::fstatvfs(&writer.file).map_err(io::Error::from)?;
        if disk.f_bavail.saturating_mul(disk.f_frsize) < reserve {
            return Err(ReceiveError::DiskFull);
        }
        Ok(writer)
    }

    pub fn write(&mut self, mut batch: Batch) -> Result<(), ReceiveError> {
        batch.end_small();
        for part in batch.pieces.iter().flat_map(|piece| piece.chunks(AT_ONCE)) {
            self.file.write_all(part).map_err(refused)?;
        }
        Ok(())
    }

    /// The file and its name stay, over power cuts too, once this returns.
    pub fn finish(mut self) -> Result<(), ReceiveError> {
        self.file.sync_data()?;
        self.place.parent().map_or(Ok(()), sync_folder)?;
        self.whole = true;
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.whole {
            // What stays nevertheless is swept up later.
            let _ = fs::remove_file(&self.place);
        }
    }
}

fn refused(error: io::Error) -> ReceiveError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ReceiveError::DiskFull,
        _ => ReceiveError::Disk(error),
    }
}

/// Makes the folder of a file, so that it stays.
fn make_folders(root: &Path, place: &Path) -> io::Result<()> {
    fs::create_dir_all(place.parent().unwrap_or(root))?;
    sync_folder(root)?;
    root.parent().map_or(Ok(()), sync_folder)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_small_pieces_become_few() {
        let dir = tempfile::tempdir().unwrap();
        let (root, place) = (dir.path().join("media"), dir.path().join("media/00/file"));
        let mut batch = Batch::default();
        let buffer = Bytes::from(vec![b'x'; SMALL]);
        for _ in 0..10_000 {
            batch.add(buffer.slice(..1));
        }
        batch.add(buffer.clone());
        batch.add(buffer.slice(..3));
        assert_eq!((batch.bytes, batch.pieces.len(), batch.small.len()), (10_003 + SMALL, 2, 3));
        let mut writer = Writer::create(&root, place.clone(), 0).unwrap();
        writer.write(batch).unwrap();
        writer.write(Batch::default()).unwrap();
        writer.finish().unwrap();
        assert!(fs::read(place).unwrap() == vec![b'x'; 10_003 + SMALL]);
    }
}
