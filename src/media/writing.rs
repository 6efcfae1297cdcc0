//! Files on their way in.
//! * Pieces are gathered in memory, then written in one visit to a thread that may block: every visit costs switches.
//! * What is gathered takes about as much memory as it has bytes, however small the pieces are that a client sends.
//! * A file that does not become whole is removed.
//! * A file is told when its name stays, and the name of its folder, whoever made that.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    mem,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
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

/// The folder with all files, and those of its folders whose names are known to stay.
#[derive(Debug)]
pub struct Folders {
    root: PathBuf,
    stay: [AtomicBool; 256],
}

impl Folders {
    pub fn of(root: PathBuf) -> Self {
        Self { root, stay: [const { AtomicBool::new(false) }; 256] }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Once in the life of the process for each folder: another upload may have made it and be no further yet.
    fn keep(&self, folder: &Path) -> io::Result<()> {
        let name = folder.file_name().and_then(|name| u8::from_str_radix(name.to_str()?, 16).ok());
        let stays = name.map(|name| &self.stay[usize::from(name)]);
        if stays.is_some_and(|stays| stays.load(Ordering::Acquire)) {
            return Ok(());
        }
        sync_folder(&self.root)?;
        self.root.parent().map_or(Ok(()), sync_folder)?;
        if let Some(stays) = stays {
            stays.store(true, Ordering::Release);
        }
        Ok(())
    }
}

/// A file that is being written. Removed when dropped, unless it became whole.
#[derive(Debug)]
pub struct Writer {
    folders: Arc<Folders>,
    file: File,
    place: PathBuf,
    whole: bool,
}

impl Writer {
    /// A new file. Refused while less than `reserve` bytes are free on its disk.
    pub fn create(folders: Arc<Folders>, place: PathBuf, reserve: u64) -> Result<Self, ReceiveError> {
        let file = match File::create_new(&place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made = place.parent().map_or(Ok(()), fs::create_dir_all);
                made.and_then(|()| File::create_new(&place))
            }
            made => made,
        };
        let writer = Self { folders, file: file.map_err(refused)?, place, whole: false };
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
        if let Some(folder) = self.place.parent() {
            sync_folder(folder)?;
            self.folders.keep(folder)?;
        }
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

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_small_pieces_become_few() {
        let dir = tempfile::tempdir().unwrap();
        let folders = Arc::new(Folders::of(dir.path().join("media")));
        let place = dir.path().join("media/00/file");
        let mut batch = Batch::default();
        let buffer = Bytes::from(vec![b'x'; SMALL]);
        for _ in 0..10_000 {
            batch.add(buffer.slice(..1));
        }
        batch.add(buffer.clone());
        batch.add(buffer.slice(..3));
        assert_eq!((batch.bytes, batch.pieces.len(), batch.small.len()), (10_003 + SMALL, 2, 3));
        let mut writer = Writer::create(folders.clone(), place.clone(), 0).unwrap();
        writer.write(batch).unwrap();
        writer.write(Batch::default()).unwrap();
        writer.finish().unwrap();
        // Written to a folder that was there: from now on it is known to stay.
        let stay: Vec<bool> = folders.stay.iter().map(|stays| stays.load(Ordering::Acquire)).collect();
        assert!(stay[0] && stay[1..].iter().all(|stays| !stays));
        assert!(fs::read(place).unwrap() == vec![b'x'; 10_003 + SMALL]);
    }
}
