//! A log-structured, deduplicating, content-addressed blob engine.
//!
//! It knows digests, lengths, bytes and links. It knows no HTTP, no SQL, no async runtime and no clock: what may wait is a
//! plain `std` future, and `now` is passed in.
//!
//! Start at [`Store`]. `docs/format.md` has the bytes on disk, `docs/ARCHITECTURE.md` the walkthroughs.

mod buffer;
mod checkpoint;
mod compaction;
mod completion;
mod digest;
pub mod disk;
mod engine;
mod error;
pub mod format;
mod gc;
mod hasher;
mod health;
mod in_flight;
mod lane;
mod lease;
mod lending;
mod locator;
mod log;
mod mapped;
mod merge;
mod options;
mod partition;
mod pool;
mod quarantine;
mod reader;
mod recent;
mod recovery;
mod replay;
mod repository;
mod scrub;
pub mod segment;
mod session;
mod snapshot;
mod solo;
mod source;
mod store;
mod superblock;
mod sync;
mod units;
mod upload;
mod zeros;

pub use compaction::{Compacted, LogUse};
pub use digest::{Algorithm, Digest, DigestError};
pub use error::{LinkError, OpenError, PutError, ReadError, Refusal, UnlinkError, UploadError};
pub use gc::Collected;
pub use hasher::{Hasher, HasherState};
pub use health::{Damage, StoreState};
pub use options::{Options, Threading};
pub use reader::BlobReader;
pub use repository::{RepositoryKey, SessionId, Uploader};
pub use scrub::{NoPosition, ScrubDepth, ScrubPosition, Scrubbed, Scrubber, Unreadable};
pub use snapshot::{HoldError, RemovalHold, Snapshot, SnapshotFile};
pub use store::{BlobStat, Hold, LinkEntry, Pins, Stats, Store, UploadStatus};
pub use upload::{Shared, Upload};
