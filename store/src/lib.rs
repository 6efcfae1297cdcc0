//! An ordered key-value store with typed tables and atomic, durable, grouped commits.
//!
//! * It keeps keys and values, in order, whole. It knows nothing of Matrix.
//! * What [`Store::commit`] answered is on the disk, and survives `kill -9` and power cuts.
//! * A commit becomes visible whole, but before it is durable: a reader of a stream stops at
//!   [`Store::watermark`], and one that has seen something newer waits for [`Store::durable`].

mod chunk;
mod codec;
mod commit;
mod compact;
mod directory;
mod engine;
mod error;
mod group;
mod jobs;
mod journal;
mod local;
mod log;
mod memory;
mod position;
mod progress;
mod reached;
mod sled;
mod store;
mod table;
mod tables;
mod value;

pub use codec::{Decoder, Desc, Encoder, KeyPart, KeyPrefix, StartingWith};
pub use commit::{COMMIT_BYTES, COMMIT_ROWS, Commit, KEY_MAX, Topic, VALUE_MAX};
pub use compact::Compacted;
pub use engine::{Answer, Data, Engine, Order, Pending, Scan};
pub use error::{CommitError, Malformed, StoreError};
pub use jobs::{StagePlan, Staging};
pub use position::{Committed, StreamPosition};
pub use progress::{Lagged, Progress, Stats, Wake, Watch};
pub use store::{FORMAT, Store, StoreOptions};
pub use table::{Range, Space, Table};
pub use value::{Blob, Positioned, Record, Value};
