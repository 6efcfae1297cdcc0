//! What is asked for with a file, by users and by servers alike: how long they wait for it, and how large a thumbnail is.

use std::time::Duration;

use hearth_pictures::{Fit, Frame};
use serde::Deserialize;

use super::thumbnails::frame_for;

/// How long a request waits for a file that has not come yet, if it does not say.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long it waits at most.
const PATIENCE_MAX: Duration = Duration::from_secs(60);

/// A file that is asked for.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct WantedFile {
    timeout_ms: Option<u64>,
}

/// A thumbnail that is asked for. That it be `animated` is a wish; what is made here stands still.
#[derive(Clone, Debug, Deserialize)]
pub struct WantedThumbnail {
    width: u32,
    height: u32,
    method: Option<String>,
    timeout_ms: Option<u64>,
}

/// Why there is no such thumbnail of anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoThumbnail {
    #[error("a thumbnail is at least one pixel wide and high")]
    Empty,
    #[error("the method is either crop or scale")]
    UnknownMethod,
}

impl WantedFile {
    /// How long the request waits for the file.
    pub fn patience(self) -> Duration {
        self.timeout_ms.map_or(PATIENCE, |timeout_ms| Duration::from_millis(timeout_ms).min(PATIENCE_MAX))
    }
}

impl WantedThumbnail {
    /// The file that it is made of.
    pub fn file(&self) -> WantedFile {
        WantedFile { timeout_ms: self.timeout_ms }
    }

    /// What is given for it.
    pub fn frame(&self) -> Result<Frame, NoThumbnail> {
        if self.width == 0 || self.height == 0 {
            return Err(NoThumbnail::Empty);
        }
        let fit = match self.method.as_deref() {
            None | Some("scale") => Fit::Scale,
            Some("crop") => Fit::Crop,
            Some(_) => return Err(NoThumbnail::UnknownMethod),
        };
        Ok(frame_for(self.width, self.height, fit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(query: &str) -> Result<Frame, NoThumbnail> {
        serde_html_form::from_str::<WantedThumbnail>(query).unwrap().frame()
    }

    #[test]
    fn a_thumbnail_is_of_one_of_the_sizes_and_not_empty() {
        assert_eq!(frame("width=30&height=20&method=crop&animated=true"), Ok(frame_for(30, 20, Fit::Crop)));
        assert_eq!(frame("width=30&height=20"), frame("width=30&height=20&method=scale"));
        assert_eq!(frame("width=0&height=20"), Err(NoThumbnail::Empty));
        assert_eq!(frame("width=30&height=20&method=melt"), Err(NoThumbnail::UnknownMethod));
    }

    #[test]
    fn nobody_waits_longer_than_a_minute() {
        let waits = |timeout_ms| WantedFile { timeout_ms }.patience();
        assert_eq!(waits(None), PATIENCE);
        assert_eq!(waits(Some(5)), Duration::from_millis(5));
        assert_eq!(waits(Some(u64::MAX)), PATIENCE_MAX);
    }
}
