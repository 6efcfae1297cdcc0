//! Files on the disk, under names of our own: nothing that a client sends becomes part of a path.
//! * A file is received into `incoming/`, synced, moved to its place and its folder synced, before it is told.
//!   So what lies in its place is whole; what is left in `incoming/` after a crash goes at the next start.
//! * Bytes pass through in pieces, whatever the size of the file.
//! * Thumbnails can be made again: only their content is synced, so that one which is there is whole.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use rustix::{buffer::spare_capacity, io::pread};
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

use super::ids;

/// Bytes that are gathered before they are written, or read before they are sent.
const PIECE: usize = 256 * 1024;

/// The name of a file on this disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileId([u8; 16]);

impl FileId {
    fn random() -> Self {
        Self(ids::random())
    }

    /// Folder and name: 256 folders, so that none becomes very long.
    fn parts(self) -> (String, String) {
        let hex = self.0.map(|byte| format!("{byte:02x}")).concat();
        (hex[..2].to_owned(), hex[2..].to_owned())
    }
}

/// The folder with all files.
#[derive(Debug)]
pub struct Files {
    root: PathBuf,
    reserve: u64,
}

/// Why a file was not received.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    #[error("the file is larger than {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("the upload broke off: {0}")]
    BrokenOff(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the disk of the server is nearly full")]
    DiskFull,
    #[error("the file could not be written")]
    Disk(#[from] io::Error),
}

/// A file that was received whole and is on the disk, but not yet in its place.
#[derive(Debug)]
pub struct Received {
    pub id: FileId,
    pub size: u64,
    pub hash: [u8; 32],
    incoming: Incoming,
}

impl Files {
    /// The folder at `root`, made when the first file comes. No upload begins while less than `reserve` bytes are
    /// free.
    pub fn open(root: PathBuf, reserve: u64) -> io::Result<Self> {
        let incoming = root.join(INCOMING);
        if incoming.exists() {
            fs::remove_dir_all(&incoming)?;
        }
        Ok(Self { root, reserve })
    }

    /// Takes in a file of at most `limit` bytes.
    pub async fn receive<E>(
        &self,
        pieces: impl Stream<Item = Result<Bytes, E>> + Send,
        limit: u64,
    ) -> Result<Received, ReceiveError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let id = FileId::random();
        let (folder, name) = id.parts();
        let path = self.root.join(INCOMING).join(format!("{folder}{name}"));
        let (root, reserve) = (self.root.clone(), self.reserve);
        let mut writer = Some(blocking(move || Writer::create(&root, path, reserve)).await?);

        let mut pieces = std::pin::pin!(pieces);
        let (mut gathered, mut gathered_bytes, mut size) = (Vec::new(), 0, 0);
        loop {
            let piece = pieces.next().await.transpose();
            let piece = piece.map_err(|error| ReceiveError::BrokenOff(error.into()))?;
            let ended = piece.is_none();
            if let Some(piece) = piece {
                size += piece.len() as u64;
                if size > limit {
                    return Err(ReceiveError::TooLarge { limit });
                }
                gathered_bytes += piece.len();
                gathered.push(piece);
            }
            if !ended && gathered_bytes < PIECE {
                continue;
            }
            let Some(mut open) = writer.take() else { break };
            let batch = std::mem::take(&mut gathered);
            gathered_bytes = 0;
            if ended {
                let (hash, incoming) =
                    blocking(move || open.write(&batch).and_then(|()| open.finish())).await?;
                return Ok(Received { id, size, hash, incoming });
            }
            writer = Some(blocking(move || open.write(&batch).map(|()| open)).await?);
        }
        Err(ReceiveError::Disk(io::Error::other("the writer is gone")))
    }

    /// Puts a received file into its place. It stays there, over power cuts too, once this returns.
    pub async fn keep(&self, received: Received) -> Result<(), ReceiveError> {
        let (root, place) = (self.root.clone(), self.place(received.id));
        blocking(move || {
            let folder = place.parent().unwrap_or(&root);
            if make_folder(folder)? {
                sync_folder(&root)?;
            }
            received.incoming.move_to(&place)?;
            sync_folder(folder).map_err(ReceiveError::from)
        })
        .await
    }

    /// A file to be read.
    pub async fn read(&self, id: FileId) -> io::Result<Reader> {
        Reader::open(self.place(id)).await
    }

    /// Removes a file that no row names.
    pub async fn remove(&self, id: FileId) {
        let place = self.place(id);
        let removed = spawn_blocking(move || fs::remove_file(place)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(%error, "a media file could not be removed");
        }
    }

    pub fn place(&self, id: FileId) -> PathBuf {
        let (folder, name) = id.parts();
        self.root.join(folder).join(name)
    }

    /// Where a derived file lies.
    pub fn derived_place(&self, id: FileId, suffix: &str) -> PathBuf {
        let (folder, name) = id.parts();
        self.root.join(DERIVED).join(folder).join(format!("{name}-{suffix}"))
    }

    /// Writes a derived file. Blocks.
    pub fn write_derived(&self, place: &Path, content: &[u8]) -> io::Result<()> {
        let (folder, name) = FileId::random().parts();
        let incoming = Incoming(self.root.join(INCOMING).join(format!("{folder}{name}")));
        let mut file = File::create_new(&incoming.0)?;
        file.write_all(content)?;
        file.sync_data()?;
        if let Some(folder) = place.parent() {
            fs::create_dir_all(folder)?;
        }
        incoming.move_to(place)
    }
}

const INCOMING: &str = "incoming";
const DERIVED: &str = "thumbnails";

/// A file under `incoming/`; removed when dropped, unless it was moved to its place.
#[derive(Debug)]
struct Incoming(PathBuf);

impl Incoming {
    fn move_to(mut self, place: &Path) -> io::Result<()> {
        fs::rename(&self.0, place)?;
        self.0 = PathBuf::new();
        Ok(())
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty() {
            // What stays nevertheless goes at the next start.
            let _ = fs::remove_file(&self.0);
        }
    }
}

struct Writer {
    file: File,
    hasher: blake3::Hasher,
    incoming: Incoming,
}

impl Writer {
    fn create(root: &Path, path: PathBuf, reserve: u64) -> Result<Self, ReceiveError> {
        if let Some(incoming) = path.parent()
            && !incoming.exists()
        {
            fs::create_dir_all(incoming)?;
            sync_folder(root)?;
            root.parent().map_or(Ok(()), sync_folder)?;
        }
        let disk = rustix::fs::statvfs(root).map_err(io::Error::from)?;
        if disk.f_bavail.saturating_mul(disk.f_frsize) < reserve {
            return Err(ReceiveError::DiskFull);
        }
        let file = File::create_new(&path)?;
        Ok(Self { file, hasher: blake3::Hasher::new(), incoming: Incoming(path) })
    }

    fn write(&mut self, pieces: &[Bytes]) -> Result<(), ReceiveError> {
        for piece in pieces {
            self.hasher.update(piece);
            self.file.write_all(piece).map_err(|error| match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ReceiveError::DiskFull,
                _ => ReceiveError::Disk(error),
            })?;
        }
        Ok(())
    }

    fn finish(self) -> Result<([u8; 32], Incoming), ReceiveError> {
        self.file.sync_data()?;
        Ok((*self.hasher.finalize().as_bytes(), self.incoming))
    }
}

/// An open file, or a part of it.
#[derive(Debug)]
pub struct Reader {
    file: Arc<File>,
    pub size: u64,
    offset: u64,
    end: u64,
}

impl Reader {
    pub async fn open(path: PathBuf) -> io::Result<Self> {
        let opened = spawn_blocking(move || {
            let file = File::open(path)?;
            let size = file.metadata()?.len();
            Ok(Self { file: Arc::new(file), size, offset: 0, end: size })
        });
        opened.await.map_err(io::Error::other)?
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
            let (file, offset) = (reader.file.clone(), reader.offset);
            let piece = spawn_blocking(move || read_piece(&file, offset, wanted));
            let piece = piece.await.map_err(io::Error::other)??;
            reader.offset += piece.len() as u64;
            Ok(Some((piece, reader)))
        })
    }
}

fn read_piece(file: &File, offset: u64, wanted: usize) -> io::Result<Bytes> {
    let mut buffer = Vec::with_capacity(wanted);
    while buffer.len() < wanted {
        let at = offset + buffer.len() as u64;
        if pread(file, spare_capacity(&mut buffer), at)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    // The allocator may have given more than was asked for.
    buffer.truncate(wanted);
    Ok(buffer.into())
}

/// Makes a folder whose parent is there. Whether it was missing.
fn make_folder(folder: &Path) -> io::Result<bool> {
    match fs::create_dir(folder) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ReceiveError> + Send + 'static,
) -> Result<T, ReceiveError> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn receive(files: &Files, pieces: &[&'static [u8]], limit: u64) -> Result<Received, ReceiveError> {
        let pieces: Vec<io::Result<Bytes>> =
            pieces.iter().map(|piece| Ok(Bytes::from_static(piece))).collect();
        files.receive(stream::iter(pieces), limit).await
    }

    fn entries(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[tokio::test]
    async fn a_file_is_in_its_place_only_when_whole() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path().join("media"), 0).unwrap();
        let received = receive(&files, &[b"hello ", b"world"], 11).await.unwrap();
        let id = received.id;
        assert_eq!((received.size, received.hash), (11, *blake3::hash(b"hello world").as_bytes()));
        assert!(files.read(id).await.is_err());
        files.keep(received).await.unwrap();
        let whole: Vec<Bytes> =
            files.read(id).await.unwrap().into_stream().map(Result::unwrap).collect().await;
        assert_eq!(whole.concat(), b"hello world");
        let part = files.read(id).await.unwrap().part(4, 7).into_stream();
        assert_eq!(part.map(Result::unwrap).collect::<Vec<_>>().await.concat(), b"o w");
        assert_eq!(entries(&dir.path().join("media/incoming")), 0);
    }

    #[tokio::test]
    async fn nothing_is_left_of_uploads_that_failed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("media");
        let files = Files::open(root.clone(), 0).unwrap();
        assert!(matches!(
            receive(&files, &[b"hello", b"world"], 9).await,
            Err(ReceiveError::TooLarge { limit: 9 })
        ));
        let broken = stream::iter([Ok(Bytes::from_static(b"a")), Err(io::Error::other("gone"))]);
        assert!(matches!(files.receive(broken, 9).await, Err(ReceiveError::BrokenOff(_))));
        drop(receive(&files, &[b"never kept"], 90).await.unwrap());
        assert_eq!((entries(&root), entries(&root.join("incoming"))), (1, 0));

        fs::write(root.join("incoming/left-by-a-crash"), b"x").unwrap();
        Files::open(root.clone(), 0).unwrap();
        assert!(!root.join("incoming").exists());
        let full = Files::open(root, u64::MAX).unwrap();
        assert!(matches!(receive(&full, &[b"a"], 9).await, Err(ReceiveError::DiskFull)));
    }
}
