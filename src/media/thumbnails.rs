//! Thumbnails: made when first asked for, then kept.
//! * There are a few sizes only, so that nobody fills the disk by asking for many.
//! * At most [`AT_ONCE`] pictures are decoded at once, and together they stay within a bound of memory.

use std::{fs::File, io, path::PathBuf};

use hearth_pictures::{Fit, Frame, PictureError, SmallFormat};
use tokio::{sync::Semaphore, task::spawn_blocking};

use super::{
    files::{FileId, Files},
    reading::Reader,
};

/// Pictures that are decoded at the same time.
pub const AT_ONCE: usize = 2;

const fn frame(width: u32, height: u32, fit: Fit) -> Frame {
    Frame { width, height, fit }
}

/// What is kept, from small to large. The specification's sizes, and larger ones for today's screens.
const FRAMES: [Frame; 9] = [
    frame(32, 32, Fit::Crop),
    frame(96, 96, Fit::Crop),
    frame(320, 320, Fit::Crop),
    frame(640, 640, Fit::Crop),
    frame(800, 800, Fit::Crop),
    frame(320, 240, Fit::Scale),
    frame(640, 480, Fit::Scale),
    frame(800, 600, Fit::Scale),
    frame(1600, 1200, Fit::Scale),
];

/// The frame for a request: the smallest that is not smaller than asked for, else the largest.
pub fn frame_for(width: u32, height: u32, fit: Fit) -> Frame {
    let fitting = || FRAMES.iter().filter(|frame| frame.fit == fit);
    let covering = fitting().find(|frame| frame.width >= width && frame.height >= height);
    *covering.or_else(|| fitting().next_back()).unwrap_or(&FRAMES[0])
}

/// A thumbnail, open.
#[derive(Debug)]
pub struct Thumbnail {
    pub format: SmallFormat,
    pub reader: Reader,
}

/// Makes thumbnails, a few at a time.
#[derive(Debug)]
pub struct Thumbnailer {
    turns: Semaphore,
}

impl Default for Thumbnailer {
    fn default() -> Self {
        Self { turns: Semaphore::new(AT_ONCE) }
    }
}

impl Thumbnailer {
    /// The thumbnail of a file; made now if nobody has asked for it before.
    pub async fn thumbnail(
        &self,
        files: &std::sync::Arc<Files>,
        id: FileId,
        frame: Frame,
    ) -> Result<Thumbnail, PictureError> {
        if let Some(kept) = kept(files, id, frame).await? {
            return Ok(kept);
        }
        let turn = self.turns.acquire().await.map_err(io::Error::other)?;
        // Whoever had the turn before may have made it.
        if let Some(kept) = kept(files, id, frame).await? {
            return Ok(kept);
        }
        let maker = files.clone();
        let made = spawn_blocking(move || make(&maker, id, frame)).await.map_err(io::Error::other)?;
        drop(turn);
        let (format, place) = made?;
        Ok(Thumbnail { format, reader: files.read_at(place).await? })
    }
}

fn make(files: &Files, id: FileId, frame: Frame) -> Result<(SmallFormat, PathBuf), PictureError> {
    let small = hearth_pictures::shrink(File::open(files.place(id))?, frame)?;
    let place = place(files, id, frame, small.format);
    files.write_derived(&place, &small.bytes)?;
    Ok((small.format, place))
}

/// Removes all thumbnails of a file that is gone.
pub async fn remove(files: &std::sync::Arc<Files>, id: FileId) {
    let files = files.clone();
    let removed = spawn_blocking(move || {
        for (frame, format) in FRAMES.iter().flat_map(|frame| SmallFormat::ALL.map(|format| (*frame, format)))
        {
            match std::fs::remove_file(place(&files, id, frame, format)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(%error, "a thumbnail could not be removed");
                }
                _ => {}
            }
        }
    });
    // It ends by itself, and nobody needs to know.
    let _ = removed.await;
}

async fn kept(files: &Files, id: FileId, frame: Frame) -> io::Result<Option<Thumbnail>> {
    for format in SmallFormat::ALL {
        match files.read_at(place(files, id, frame, format)).await {
            Ok(reader) => return Ok(Some(Thumbnail { format, reader })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn place(files: &Files, id: FileId, frame: Frame, format: SmallFormat) -> PathBuf {
    let fit = match frame.fit {
        Fit::Scale => "scale",
        Fit::Crop => "crop",
    };
    files.derived_place(id, &format!("{}x{}-{fit}.{}", frame.width, frame.height, format.extension()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_gets_at_least_what_it_asked_for() {
        assert_eq!(frame_for(32, 32, Fit::Crop), frame(32, 32, Fit::Crop));
        assert_eq!(frame_for(33, 1, Fit::Crop), frame(96, 96, Fit::Crop));
        assert_eq!(frame_for(1, 1, Fit::Scale), frame(320, 240, Fit::Scale));
        assert_eq!(frame_for(320, 241, Fit::Scale), frame(640, 480, Fit::Scale));
        assert_eq!(frame_for(5000, 5000, Fit::Scale), frame(1600, 1200, Fit::Scale));
        assert_eq!(frame_for(5000, 1, Fit::Crop), frame(800, 800, Fit::Crop));
    }
}
