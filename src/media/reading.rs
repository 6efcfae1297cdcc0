//! Files on their way out.
//! * What the kernel has in memory is read at once, where the request is answered. Only what may have to wait for the
//!   disk goes to a thread that may block.
//! * One piece at a time is in memory, and it is read when it is asked for.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::PathBuf, sync::Arc};

use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio::task::spawn_blocking;

use super::buffers::{Buffers, PIECE};

/// An open file, or a part of it.
#[derive(Debug)]
pub struct Reader {
    file: Arc<File>,
    buffers: Arc<Buffers>,
    pub size: u64,
    offset: u64,
    end: u64,
}

impl Reader {
    pub async fn open(path: PathBuf, buffers: Arc<Buffers>) -> io::Result<Self> {
        let file = match cached::open(&path) {
            Some(file) => file,
            None => spawn_blocking(move || File::open(path)).await.map_err(io::Error::other)??,
        };
        // An open file's size is in memory.
        let size = file.metadata()?.len();
        Ok(Self { file: Arc::new(file), buffers, size, offset: 0, end: size })
    }

    /// Only the bytes from `start` up to, and not including, `end`.
    pub fn part(mut self, start: u64, end: u64) -> Self {
        self.end = end.min(self.size);
        self.offset = start.min(self.end);
        self
    }

    /// The bytes, in pieces, each read when it is asked for.
    pub fn into_stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        stream::try_unfold(self, |mut reader| async move {
            let wanted = usize::try_from(reader.end - reader.offset).unwrap_or(PIECE).min(PIECE);
            if wanted == 0 {
                return Ok(None);
            }
            let piece = reader.piece(wanted).await?;
            reader.offset += piece.len() as u64;
            Ok(Some((piece, reader)))
        })
    }

    async fn piece(&self, wanted: usize) -> io::Result<Bytes> {
        let (mut buffer, offset) = (self.buffers.take(wanted), self.offset);
        let there = cached::read(&self.file, buffer.as_mut(), offset);
        if there == wanted {
            return Ok(Bytes::from_owner(buffer));
        }
        let file = self.file.clone();
        let read = spawn_blocking(move || {
            file.read_exact_at(&mut buffer.as_mut()[there..], offset + there as u64)?;
            Ok(Bytes::from_owner(buffer))
        });
        read.await.map_err(io::Error::other)?
    }
}

/// What can be had without waiting for the disk.
#[cfg(target_os = "linux")]
mod cached {
    use std::{fs::File, io::IoSliceMut, path::Path};

    use rustix::{
        fs::{CWD, Mode, OFlags, ResolveFlags, openat2},
        io::{ReadWriteFlags, preadv2},
    };

    /// The file, if the kernel knows its path by heart.
    pub fn open(path: &Path) -> Option<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED).ok().map(File::from)
    }

    /// How many bytes from `offset` on were in memory; they are in `buffer` then.
    pub fn read(file: &File, buffer: &mut [u8], offset: u64) -> usize {
        let mut there = 0;
        while there < buffer.len() {
            let mut rest = [IoSliceMut::new(&mut buffer[there..])];
            match preadv2(file, &mut rest, offset + there as u64, ReadWriteFlags::NOWAIT) {
                // Too old a kernel, a file system that cannot tell: all that is for the other way to find out.
                Ok(0) | Err(_) => break,
                Ok(more) => there += more,
            }
        }
        there
    }
}

/// Elsewhere nothing is known to be in memory.
#[cfg(not(target_os = "linux"))]
mod cached {
    use std::{fs::File, path::Path};

    pub fn open(_: &Path) -> Option<File> {
        None
    }

    pub fn read(_: &File, _: &mut [u8], _: u64) -> usize {
        0
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn pieces_make_up_the_file_in_memory_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let content: Vec<u8> = (0..PIECE * 2 + 77).map(|index| (index % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let buffers = Arc::new(Buffers::default());
        let open = async || Reader::open(path.clone(), buffers.clone()).await.unwrap();
        let read = async |reader: Reader| {
            let pieces: Vec<Bytes> = reader.into_stream().map(Result::unwrap).collect().await;
            assert!(pieces.iter().all(|piece| piece.len() <= PIECE));
            pieces.concat()
        };
        for _ in 0..2 {
            assert!(read(open().await).await == content);
            let (start, end) = (PIECE - 3, PIECE * 2 + 5);
            assert!(read(open().await.part(start as u64, end as u64)).await == content[start..end]);
            // The second time it comes from the disk, if the kernel lets go of it.
            let file = File::open(&path).unwrap();
            file.sync_all().unwrap();
            let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        }
        let missing = Reader::open(dir.path().join("none"), buffers.clone()).await;
        assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn a_file_that_became_shorter_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"0123456789").unwrap();
        let reader = Reader::open(path.clone(), Arc::default()).await.unwrap();
        File::options().write(true).open(&path).unwrap().set_len(4).unwrap();
        let pieces: Vec<io::Result<Bytes>> = reader.into_stream().collect().await;
        assert_eq!(pieces[0].as_ref().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
