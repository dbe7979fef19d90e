//! HTTP/2: what one connection may make us keep and do.
//!
//! HTTP/2 gives a client more to ask for without paying: frames that carry nothing, streams that are opened and dropped,
//! windows that are never granted (S-93). The library bounds some of that with the constants here; the rest is
//! bounded by [`frames`] (what comes in) and [`streams`] (what goes out).
//!
//! What must stay true: every limit of the library is set here, with its reason, so that an upgrade changes none unseen.

mod frames;
mod streams;

use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2::Builder;
use hyper_util::rt::TokioTimer;

use crate::config::sections::Limits;
use crate::metrics::Metrics;

pub(crate) use frames::{CALM, Frames};
pub(crate) use streams::{Blocks, Streams};

/// Window of a stream: one round trip of 10 ms at 100 MB/s.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// Window of all streams of a connection: what uploads that nobody reads for the moment can make us hold.
const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// Longest frame that we take: the least that a server may say (RFC 9113 section 4.2). Larger ones gain nothing over TLS,
/// whose records are as long.
pub(crate) const FRAME_BYTES_MAX: u32 = 16 * 1024;
/// Bytes of an answer that the library takes before the socket does, for each stream: one block of a blob.
const SEND_BUFFER_BYTES: usize = 256 * 1024;
/// The table that shortens repeated header fields: the default of RFC 7541, and what each connection can make us keep.
const HEADER_TABLE_BYTES: u32 = 4096;
/// Streams that were reset before we looked at them. Such a client outruns us (rapid reset, CVE-2023-44487); the number is
/// the library's own since then.
const RESETS_BEFORE_ACCEPT_MAX: usize = 20;
/// Streams of a connection, over its life, that we had to reset because of what the client did (CVE-2025-8671), or to
/// refuse. A well-behaved client causes a few while it has not seen how many streams it may open: that number, twice.
const RESETS_BY_US_MAX: usize = 500;
/// A peer that does not answer a ping for so long is gone.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// The library, with every limit set. `head_bytes_max` is the longest head that it collects; four times as much ends the
/// connection.
pub(crate) fn builder(limits: &Limits, head_bytes_max: usize, metrics: &Arc<Metrics>) -> Builder<Streams> {
    let patience = Duration::from_secs(limits.write_stall_secs);
    let mut builder = Builder::new(Streams::new(patience, Arc::clone(metrics)));
    builder
        .max_header_list_size(u32::try_from(head_bytes_max).unwrap_or(u32::MAX))
        .header_table_size(HEADER_TABLE_BYTES)
        .max_concurrent_streams(u32::try_from(limits.streams_per_connection_max).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(RESETS_BEFORE_ACCEPT_MAX)
        .max_local_error_reset_streams(RESETS_BY_US_MAX)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(Some(Duration::from_secs(limits.keep_alive_secs)))
        .keep_alive_timeout(PING_TIMEOUT)
        .timer(TokioTimer::new());
    builder
}
