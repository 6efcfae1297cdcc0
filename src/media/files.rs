//! Files on the disk, under names of our own: nothing that a client sends becomes part of a path.
//! * A file is whole, synced, and its folder synced, before it is told. Until a row names it, it does not exist:
//!   what a crash leaves in its place is swept up, see [`super::sweep`].
//! * Bytes pass through in pieces, whatever the size of the file.
//! * Thumbnails can be made again: only their content is synced, so that one which is there is whole. They are
//!   written in `incoming/` and moved; what is left there after a crash goes at the next start.

use std::{
    collections::HashSet,
    fmt,
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    task::spawn_blocking,
};

use super::{
    buffers::{Buffers, PIECE},
    ids,
    reading::Reader,
    writing::{Batch, Folders, Writer},
};

/// Bytes of an upload that are gathered before they are written: most files are then one visit to a thread that may
/// block. Without a place among the [`LARGE_BATCHES`], an upload gathers [`PIECE`] only.
const GATHERED: usize = 1024 * 1024;
/// Uploads that may gather so much at the same time.
const LARGE_BATCHES: usize = 32;

/// The name of a file on this disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileId([u8; 16]);

/// Sixteen bytes in hexadecimal.
impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl FileId {
    fn random() -> Self {
        Self(ids::random())
    }

    /// Folder and name: 256 folders, so that none becomes very long.
    fn parts(self) -> (String, String) {
        let hex = self.to_string();
        (hex[..2].to_owned(), hex[2..].to_owned())
    }

    /// The other way round; `None` if it is no name of ours.
    fn of_parts(folder: u8, name: &str) -> Option<Self> {
        let number = u128::from_str_radix(name, 16).ok()?;
        let mut bytes = number.to_be_bytes();
        bytes[0] |= folder;
        let id = Self(bytes);
        (id.parts().1 == name).then_some(id)
    }
}

/// The folder with all files.
#[derive(Debug)]
pub struct Files {
    folders: Arc<Folders>,
    reserve: u64,
    buffers: Arc<Buffers>,
    large_batches: Semaphore,
    /// What comes in now: not to be swept up.
    arriving: Arc<Mutex<HashSet<FileId>>>,
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

/// A file that was received whole and is in its place, but has no row yet.
#[derive(Debug)]
pub struct Received {
    pub id: FileId,
    pub size: u64,
    pub checksum: u32,
    _arrival: Arrival,
}

/// A file that is being received, or waits for its row.
#[derive(Debug)]
struct Arrival(FileId, Arc<Mutex<HashSet<FileId>>>);

impl Drop for Arrival {
    fn drop(&mut self) {
        self.1.lock().remove(&self.0);
    }
}

impl Files {
    /// The folder at `root`, made when the first file comes. No upload begins while less than `reserve` bytes are
    /// free.
    pub fn open(root: PathBuf, reserve: u64) -> io::Result<Self> {
        let incoming = root.join(INCOMING);
        if incoming.exists() {
            fs::remove_dir_all(&incoming)?;
        }
        let (buffers, arriving) = (Arc::default(), Arc::default());
        let folders = Arc::new(Folders::of(root));
        Ok(Self { folders, reserve, buffers, large_batches: Semaphore::new(LARGE_BATCHES), arriving })
    }

    /// Takes in a file of at most `limit` bytes. It stays, over power cuts too, once this returns.
    pub async fn receive<E>(
        &self,
        pieces: impl Stream<Item = Result<Bytes, E>> + Send,
        limit: u64,
    ) -> Result<Received, ReceiveError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let arrival = self.arrival();
        let id = arrival.0;
        let mut pieces = std::pin::pin!(pieces);
        let (mut batch, mut size, mut checksum) = (Batch::default(), 0, crc32fast::Hasher::new());
        let (mut writer, mut large) = (None, None);
        loop {
            let piece = pieces.next().await.transpose();
            let piece = piece.map_err(|error| ReceiveError::BrokenOff(error.into()))?;
            let ended = piece.is_none();
            if let Some(piece) = piece {
                size += piece.len() as u64;
                if size > limit {
                    return Err(ReceiveError::TooLarge { limit });
                }
                // While it is in the processor's cache.
                checksum.update(&piece);
                batch.add(piece);
            }
            if !ended && self.gathers_more(batch.bytes, &mut large) {
                continue;
            }
            let (gathered, open) = (std::mem::take(&mut batch), writer.take());
            let (folders, place, reserve) = (self.folders.clone(), self.place(id), self.reserve);
            let written = blocking(move || {
                let mut writer: Writer = open.map_or_else(|| Writer::create(folders, place, reserve), Ok)?;
                writer.write(gathered)?;
                if ended { writer.finish().map(|()| None) } else { Ok(Some(writer)) }
            });
            writer = written.await?;
            if ended {
                let checksum = checksum.finalize();
                return Ok(Received { id, size, checksum, _arrival: arrival });
            }
        }
    }

    fn arrival(&self) -> Arrival {
        let id = FileId::random();
        self.arriving.lock().insert(id);
        Arrival(id, self.arriving.clone())
    }

    /// Whether an upload waits for more before it is written. A large batch needs a place, kept in `large`.
    fn gathers_more<'a>(&'a self, bytes: usize, large: &mut Option<SemaphorePermit<'a>>) -> bool {
        if bytes < PIECE {
            return true;
        }
        if large.is_none() {
            *large = self.large_batches.try_acquire().ok();
        }
        large.is_some() && bytes < GATHERED
    }

    /// A file to be read.
    pub async fn read(&self, id: FileId) -> io::Result<Reader> {
        self.read_at(self.place(id)).await
    }

    /// A file of this folder to be read.
    pub async fn read_at(&self, place: PathBuf) -> io::Result<Reader> {
        Reader::open(place, self.buffers.clone()).await
    }

    /// The files in one of the 256 folders, at most about `most`, that are older than `before_ms` and are not being
    /// received. Blocks.
    pub fn settled(&self, folder: u8, before_ms: u64, most: usize) -> io::Result<Vec<FileId>> {
        let entries = match fs::read_dir(self.folders.root().join(format!("{folder:02x}"))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut settled = Vec::new();
        for entry in entries.take(most) {
            let entry = entry?;
            let name = entry.file_name();
            let Some(id) = name.to_str().and_then(|name| FileId::of_parts(folder, name)) else { continue };
            let about = match entry.metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                about => about?,
            };
            // When the file was last changed, whatever time a backup gave it back.
            let changed_ms =
                about.ctime().saturating_mul(1000).saturating_add(about.ctime_nsec() / 1_000_000);
            if about.is_file() && u64::try_from(changed_ms).unwrap_or(0) < before_ms {
                settled.push(id);
            }
        }
        let arriving = self.arriving.lock();
        settled.retain(|id| !arriving.contains(id));
        Ok(settled)
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
        self.folders.root().join(folder).join(name)
    }

    /// Where a derived file lies.
    pub fn derived_place(&self, id: FileId, suffix: &str) -> PathBuf {
        let (folder, name) = id.parts();
        self.folders.root().join(DERIVED).join(folder).join(format!("{name}-{suffix}"))
    }

    /// Writes a derived file. Blocks.
    pub fn write_derived(&self, place: &Path, content: &[u8]) -> io::Result<()> {
        let (folder, name) = FileId::random().parts();
        let incoming = Incoming(self.folders.root().join(INCOMING).join(format!("{folder}{name}")));
        let mut file = match File::create_new(&incoming.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(self.folders.root().join(INCOMING))?;
                File::create_new(&incoming.0)?
            }
            made => made?,
        };
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

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ReceiveError> + Send + 'static,
) -> Result<T, ReceiveError> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

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
    async fn a_file_that_was_received_is_in_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path().join("media"), 0).unwrap();
        let received = receive(&files, &[b"hello ", b"world"], 11).await.unwrap();
        assert_eq!((received.size, received.checksum), (11, crc32fast::hash(b"hello world")));
        let whole: Vec<Bytes> =
            files.read(received.id).await.unwrap().into_stream().map(Result::unwrap).collect().await;
        assert_eq!(whole.concat(), b"hello world");
        let (folder, name) = received.id.parts();
        assert_eq!(FileId::of_parts(u8::from_str_radix(&folder, 16).unwrap(), &name), Some(received.id));
        let empty = receive(&files, &[], 11).await.unwrap();
        assert_eq!(files.read(empty.id).await.unwrap().size, 0);
    }

    #[tokio::test]
    async fn files_of_any_length_come_back_whole() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path().join("media"), 0).unwrap();
        let content: Vec<u8> = (0..GATHERED * 2 + 5).map(|index| (index % 253) as u8).collect();
        for busy in [false, true] {
            let places = if busy { LARGE_BATCHES } else { 0 };
            let _others = files.large_batches.acquire_many(places as u32).await.unwrap();
            for length in [PIECE - 1, PIECE, GATHERED - 1, GATHERED, GATHERED * 2 + 5] {
                let pieces = content[..length].chunks(50_000);
                let pieces = stream::iter(pieces.map(|piece| io::Result::Ok(Bytes::copy_from_slice(piece))));
                let received = files.receive(pieces, length as u64).await.unwrap();
                assert_eq!(received.checksum, crc32fast::hash(&content[..length]));
                assert!(fs::read(files.place(received.id)).unwrap() == content[..length]);
            }
        }
        assert_eq!(files.large_batches.available_permits(), LARGE_BATCHES);
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
        // Once with something written already.
        for begun in [1, GATHERED] {
            let begun = Bytes::from(vec![b'a'; begun]);
            let broken = stream::iter([Ok(begun), Err(io::Error::other("gone"))]);
            assert!(matches!(files.receive(broken, u64::MAX).await, Err(ReceiveError::BrokenOff(_))));
        }
        let full = Files::open(root.clone(), u64::MAX).unwrap();
        assert!(matches!(receive(&full, &[b"a"], 9).await, Err(ReceiveError::DiskFull)));
        assert_eq!(
            fs::read_dir(&root).unwrap().map(|folder| entries(&folder.unwrap().path())).sum::<usize>(),
            0
        );
        assert!(files.arriving.lock().is_empty());

        fs::create_dir_all(root.join("incoming")).unwrap();
        fs::write(root.join("incoming/left-by-a-crash"), b"x").unwrap();
        Files::open(root.clone(), 0).unwrap();
        assert!(!root.join("incoming").exists());
    }
}
