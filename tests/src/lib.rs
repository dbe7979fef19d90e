//! What the tests of the whole server share: a running `taffrail`, the programs people point at it, images made
//! from nothing, and a memory of what was acknowledged.
//!
//! Nothing here imports a crate of the product. The tests meet the server as users do: by its command line, its
//! files and its HTTP answers. That keeps them true when the inside is rebuilt.

pub mod binary;
pub mod certificate;
pub mod conformance;
pub mod containerd;
pub mod crowd;
pub mod distribution;
pub mod docker;
pub mod frames;
pub mod fsck;
pub mod http;
pub mod images;
pub mod ledger;
pub mod load;
pub mod loop_disk;
pub mod program;
pub mod ranks;
pub mod raw;
pub mod sandbox;
pub mod scene;
pub mod server;
pub mod settings;
pub mod soak;
pub mod tools;
pub mod usage;

/// Returns early, with the test passed and a `SKIPPED` line written, unless every named tool is present.
///
/// The test returns `anyhow::Result<()>`. With `TAFFRAIL_REQUIRE_TOOLS=1` an absent tool is an error.
#[macro_export]
macro_rules! require_tools {
    ($($tool:expr),+ $(,)?) => {
        if !$crate::tools::present(&[$($tool),+])? {
            return Ok(());
        }
    };
}
