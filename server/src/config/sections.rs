//! The sections of the configuration: every key, its default and its reason.
//!
//! What must stay true: a limit has a named constant here with where it comes from, and a key, so that an operator can
//! move it. Numbers such as L-03 are explained in docs/requirements.md.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use super::section::{Secret, choice, section};
use super::values::{ExternalUrl, LogFilter, MediaType, MetricsListen, Network};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;
const TIB: u64 = 1024 * GIB;
const HOUR_SECS: u64 = 3600;
const DAY_SECS: u64 = 24 * HOUR_SECS;

/// Port of the registry: what distribution uses, and what clients treat as a local registry.
pub(crate) const PORT: u16 = 5000;
/// Port of the metrics.
pub(crate) const METRICS_PORT: u16 = 5001;

/// Time for requests under way after SIGTERM. Kubernetes kills after 30 s by default.
pub(crate) const DRAIN_SECS: u64 = 30;
/// Time to read a request's head: ends slow-header attacks (L-03).
pub(crate) const HEADER_TIMEOUT_SECS: u64 = 10;
/// Idle time of a kept-alive connection: longer than the 60 s or 75 s for which proxies keep theirs.
pub(crate) const KEEP_ALIVE_SECS: u64 = 120;
/// The slowest body that we go on reading …
pub(crate) const BODY_BYTES_PER_SEC_MIN: u64 = KIB;
/// … over a window of this length, so that a short stall does no harm.
pub(crate) const BODY_WINDOW_SECS: u64 = 30;
/// A reader that takes nothing for this long is cut (L-05).
pub(crate) const WRITE_STALL_SECS: u64 = 60;
/// Header section. A request for 1024 ranges needs about 16 KiB of `Range`.
pub(crate) const HEADER_BYTES_MAX: u64 = 32 * KIB;
/// Header fields: several times what clients and proxies send.
pub(crate) const HEADER_FIELDS_MAX: u64 = 100;
/// Request line: far above the longest name, digest and page marker.
pub(crate) const REQUEST_LINE_BYTES_MAX: u64 = 8 * KIB;
/// Manifest body: what distribution, zot and Harbor take.
pub(crate) const MANIFEST_BYTES_MAX: u64 = 4 * MIB;
// The engine commits a manifest in one piece.
const _: () = assert!(MANIFEST_BYTES_MAX <= taffrail_blobstore::format::INLINE_BYTES_MAX as u64);
/// JSON body of the REST API: none comes near it.
pub(crate) const JSON_BYTES_MAX: u64 = MIB;
/// Body of a login: a name and a password.
pub(crate) const LOGIN_BYTES_MAX: u64 = 16 * KIB;
/// Form of the token endpoint: a name, a password and scopes.
pub(crate) const TOKEN_FORM_BYTES_MAX: u64 = 64 * KIB;
/// Connections in total: ten thousand clients that idle, and room.
pub(crate) const CONNECTIONS_MAX: u64 = 16_384;
/// Connections of one address: enough for a site behind one, too few to take them all.
pub(crate) const CONNECTIONS_PER_IP_MAX: u64 = 1024;
/// Streams of one HTTP/2 connection (L-21).
pub(crate) const STREAMS_PER_CONNECTION_MAX: u64 = 250;
/// Entries of a page when the client does not say: as many as Harbor gives at most.
pub(crate) const PAGE_ENTRIES_DEFAULT: u64 = 100;
/// Entries of a page at most: as in distribution.
pub(crate) const PAGE_ENTRIES_MAX: u64 = 1000;
/// Idle life of an upload session: a push that broke in the evening goes on in the morning.
pub(crate) const UPLOAD_IDLE_SECS: u64 = DAY_SECS;
/// Time between two sweeps of expired sessions: short against their life.
pub(crate) const UPLOAD_SWEEP_SECS: u64 = HOUR_SECS;
/// Open sessions of one repository.
pub(crate) const SESSIONS_PER_REPOSITORY_MAX: u64 = 1000;
/// Open sessions of one user: two hundred pushes at a time, and a fifth of the total, so that nobody takes it from all others.
pub(crate) const SESSIONS_PER_USER_MAX: u64 = 2000;
/// Open sessions in total.
pub(crate) const SESSIONS_MAX: u64 = 10_000;
/// Bytes of small sessions that are kept in memory until they spill (docs/ARCHITECTURE.md, "Following a push").
pub(crate) const SESSION_MEMORY_BYTES_MAX: u64 = 64 * MIB;
/// Longest blob: far above any image layer, below what a file system takes in one file.
pub(crate) const BLOB_BYTES_MAX: u64 = TIB;
/// Segments of the main log.
pub(crate) const SEGMENT_BYTES: u64 = 256 * MIB;
/// Space that deletes still have on a full disk (P-09).
pub(crate) const RESERVE_BYTES: u64 = 64 * MIB;
/// Memory for reading ahead: 5 MiB for each of six slow clients and a block for each of 128 more; fast ones share it.
pub(crate) const READ_AHEAD_BYTES_MAX: u64 = 64 * MIB;
/// Memory for small blobs and manifests: five thousand of common size, within what a server at rest may hold.
pub(crate) const RECENT_BYTES_MAX: u64 = 32 * MIB;
/// Pace of compaction: a quarter of what a hard disk does one after the other.
pub(crate) const COMPACTION_BYTES_PER_SEC: u64 = 32 * MIB;
/// Life of a lease.
pub(crate) const LEASE_SECS: u64 = HOUR_SECS;
/// Time between the last link going and the bytes going.
pub(crate) const GRACE_SECS: u64 = HOUR_SECS;

/// Milliseconds between two looks for bytes to give back.
pub(crate) const COLLECTION_PAUSE_MS: u64 = 10_000;
/// Time between the beginnings of two passes of the scrub: rot is to be found while a client still has the image.
pub(crate) const SCRUB_PERIOD_SECS: u64 = 7 * DAY_SECS;
/// Time between two that hold blobs against their digests: checksums find what rots; a digest finds what was written wrongly,
/// which does not change from week to week.
pub(crate) const SCRUB_DIGEST_PERIOD_SECS: u64 = 30 * DAY_SECS;
/// Rate of the scrub: 4.6 TiB in a week, and a twentieth of what a disk with arms gives.
pub(crate) const SCRUB_BYTES_PER_SEC: u64 = 8 * MIB;

section! {
    /// Where the registry listens and how it is reached.
    struct Server {
        /// Address and port of the registry, its API and its health checks.
        /// Plain HTTP on an address beyond loopback needs `insecure_http`.
        listen: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), PORT),
        /// The URL that clients use, when it is not `listen`: behind a proxy, a name, another port.
        /// The realm of the token service is made from it, never from what a request says. Without it the realm is made
        /// from the request's `Host`, which is right on one machine and nowhere else: set it when others are to log in.
        external_url: Option<ExternalUrl> = None,
        /// Allows plain HTTP on an address beyond loopback. Passwords and tokens then cross the network in clear text:
        /// only behind a proxy that speaks TLS, or on a network that you trust.
        insecure_http: bool = false,
        /// Proxies whose `X-Forwarded-For` is believed. The header of anybody else is ignored.
        /// These addresses are also free of `limits.connections_per_ip_max`.
        trusted_proxies: Vec<Network> = Vec::new(),
        /// Seconds that requests under way have to finish after SIGTERM. A second SIGTERM ends the server at once.
        drain_secs: u64 [0..=HOUR_SECS] = DRAIN_SECS,
        /// How blobs of more than 1 MiB leave when they are in memory and the connection has no TLS. `copy` reads them into
        /// memory of the server first, as over TLS. `mapped` hands the mapped file to the socket. `sendfile` copies nothing here,
        /// which may pay on a network card. `auto` is what was measured to cost least: `mapped`. Checksums are verified in all
        /// of them.
        pull_path: PullPath = PullPath::Auto,
    }
}

choice! {
    /// Whether and how the listener speaks TLS.
    enum TlsMode {
        /// Plain HTTP.
        Off = "off",
        /// A certificate made at the first start and kept in the data directory.
        SelfSigned = "self_signed",
        /// Certificate and key from files.
        Files = "files",
    }
}

choice! {
    /// How blobs of large files that are in memory leave, on connections without TLS.
    enum PullPath {
        /// What was measured to cost least: `mapped`.
        Auto = "auto",
        /// By `sendfile`, which copies nothing here.
        Sendfile = "sendfile",
        /// Out of the mapped file, by a write to the socket.
        Mapped = "mapped",
        /// Read into memory of the server first, as over TLS.
        Copy = "copy",
    }
}

section! {
    /// TLS of the registry's listener: versions 1.2 and 1.3, with HTTP/2.
    struct Tls {
        /// `off` is plain HTTP. `self_signed` makes a certificate for localhost, the listening address and the host of
        /// `server.external_url`, and keeps it in `DIR/tls`. `files` reads the two files below.
        mode: TlsMode = TlsMode::Off,
        /// Certificate chain, PEM, the server's own certificate first. Read again when it changes; connections stay up.
        cert_file: Option<PathBuf> = None,
        /// Private key, PEM. Must not be readable by others than its owner and group.
        key_file: Option<PathBuf> = None,
    }
}

choice! {
    /// How the files of the store are read and written.
    enum StorageIo {
        /// Large writes through `io_uring` where it can be had, else as `threads`.
        Auto = "auto",
        /// As `auto`, and an error where it cannot be had.
        Uring = "uring",
        /// Everything on threads.
        Threads = "threads",
    }
}

section! {
    /// Where and how bytes are kept.
    struct Storage {
        /// The data directory. Everything that must survive lies in it; it must belong to the server alone.
        data_dir: PathBuf = PathBuf::from("./taffrail-data"),
        /// Size of the log's segments in bytes, a power of two. Takes effect when a store is made; an existing one keeps
        /// its size.
        segment_bytes: u64 [MIB..=256 * MIB] = SEGMENT_BYTES,
        /// Space in bytes that is set aside so that deletes still work on a full disk.
        reserve_bytes: u64 [0..=64 * GIB] = RESERVE_BYTES,
        /// Bytes of memory for reading blobs ahead of their clients, all together. A client that is slower than the disk holds
        /// 5 MiB; when less than half is left, 512 KiB. One for whom none is left is served block by block, which is slower.
        read_ahead_bytes_max: u64 [0..=64 * GIB] = READ_AHEAD_BYTES_MAX,
        /// Bytes of memory for manifests and blobs of at most 64 KiB that were read lately. 0 keeps none.
        recent_bytes_max: u64 [0..=64 * GIB] = RECENT_BYTES_MAX,
        /// How files are read and written. `auto` writes large blobs through `io_uring` where the system lets it and says in the
        /// log where it does not, as in most containers; `uring` does not start without; `threads` never asks for it. All
        /// else goes through threads, which are as fast or faster there; the bytes on disk are the same.
        io: StorageIo = StorageIo::Auto,
        /// Threads that read and write files. 0 means four for each processor, at least eight.
        threads: u64 [0..=1024] = 0,
        /// Seconds for which a blob that a client was told to exist stays, even when nothing links it any more.
        lease_secs: u64 [1..=7 * DAY_SECS] = LEASE_SECS,
        /// Seconds between the last link of a blob going and its bytes going.
        grace_secs: u64 [0..=30 * DAY_SECS] = GRACE_SECS,
        /// Bytes that compaction may read and write in a second. It rewrites segments of the log in which deleted blobs take
        /// half the room or more, while the server runs, so that the disk gets that room back. 0 switches it off: segments in
        /// which anything counts then stay.
        compaction_bytes_per_sec: u64 [0..=64 * GIB] = COMPACTION_BYTES_PER_SEC,
        /// Milliseconds between two looks for bytes to give back. While there are more, no pause is made.
        collection_pause_ms: u64 [10..=HOUR_SECS * 1000] = COLLECTION_PAUSE_MS,
        /// The operator's word that store and catalog belong together, although the catalog remembers another store or a
        /// later state of it: after one of them was restored from a backup. Until it is given, nothing is deleted.
        trust_store: bool = false,
    }
}

section! {
    /// Reading the whole store again in search of rot, past the page cache. A damaged blob is answered 404 from then on, so that
    /// the next push heals it; `damage.md` says more. It takes a quarter of the disk's time at most, whatever its rate.
    struct Scrub {
        /// Seconds between the beginnings of two passes; one that takes longer is followed at once. 0 never scrubs.
        period_secs: u64 [0..=365 * DAY_SECS] = SCRUB_PERIOD_SECS,
        /// Seconds between two passes that hold every blob against its digest. The others compare checksums, which finds the
        /// same rot and takes less of a processor. 0: every pass does.
        digest_period_secs: u64 [0..=3650 * DAY_SECS] = SCRUB_DIGEST_PERIOD_SECS,
        /// Bytes per second that are read at most; a small blob counts as 64 KiB. 0 never scrubs.
        bytes_per_sec: u64 [0..=64 * GIB] = SCRUB_BYTES_PER_SEC,
    }
}

section! {
    /// Upload sessions: pushes that have begun and not ended.
    struct Uploads {
        /// Seconds without a request after which a session is dropped; one without a byte in it after an hour at most.
        idle_secs: u64 [1..=30 * DAY_SECS] = UPLOAD_IDLE_SECS,
        /// Seconds between two sweeps for such sessions.
        sweep_secs: u64 [1..=DAY_SECS] = UPLOAD_SWEEP_SECS,
        /// Open sessions of one repository; one more is answered 429, unless another that has had no byte for ten seconds
        /// can make room for it. The same holds for the next two.
        per_repository_max: u64 [1..=1_000_000] = SESSIONS_PER_REPOSITORY_MAX,
        /// Open sessions of one user, in all repositories. Keep it well below `total_max`.
        per_user_max: u64 [1..=1_000_000] = SESSIONS_PER_USER_MAX,
        /// Open sessions in total.
        total_max: u64 [1..=1_000_000] = SESSIONS_MAX,
        /// Bytes of small sessions that are held in memory before they go to disk.
        memory_bytes_max: u64 [MIB..=64 * GIB] = SESSION_MEMORY_BYTES_MAX,
        /// Longest blob in bytes; a longer one is answered 413.
        blob_bytes_max: u64 [1..=16 * TIB] = BLOB_BYTES_MAX,
    }
}

section! {
    /// Bounds on what clients may send and hold.
    struct Limits {
        /// Seconds to receive the head of a request, and for a TLS handshake.
        header_timeout_secs: u64 [1..=HOUR_SECS] = HEADER_TIMEOUT_SECS,
        /// Seconds that a connection may idle between requests.
        keep_alive_secs: u64 [1..=HOUR_SECS] = KEEP_ALIVE_SECS,
        /// Bytes per second that a request body must bring on average over `body_window_secs`; a slower one is
        /// answered 408. An upload can be resumed where it stopped.
        body_bytes_per_sec_min: u64 [0..=GIB] = BODY_BYTES_PER_SEC_MIN,
        /// Seconds over which that average is taken.
        body_window_secs: u64 [1..=HOUR_SECS] = BODY_WINDOW_SECS,
        /// Seconds after which a client that takes nothing of its answer is cut off. Over HTTP/2 it has to take 64 KiB in that
        /// time, and what ends is the one stream.
        write_stall_secs: u64 [1..=HOUR_SECS] = WRITE_STALL_SECS,
        /// Bytes of a request's header fields, each counted as `name: value` with its line end; more is answered 431.
        header_bytes_max: u64 [KIB..=MIB] = HEADER_BYTES_MAX,
        /// Header fields of a request; more is answered 431.
        header_fields_max: u64 [8..=1000] = HEADER_FIELDS_MAX,
        /// Bytes of a request line; a longer one is answered 414.
        request_line_bytes_max: u64 [256..=60 * KIB] = REQUEST_LINE_BYTES_MAX,
        /// Bytes of a manifest; more is answered 413. Can be lowered only: the store takes no more in one piece.
        manifest_bytes_max: u64 [KIB..=MANIFEST_BYTES_MAX] = MANIFEST_BYTES_MAX,
        /// Media types of manifests that are taken besides those of OCI and Docker. Such a manifest is JSON, and `config`, `layers`,
        /// `blobs`, `manifests` and `subject` are read as descriptors where it has them.
        extra_manifest_types: Vec<MediaType> = Vec::new(),
        /// Bytes of a JSON body of the REST API; more is answered 413. Can be lowered only.
        json_bytes_max: u64 [KIB..=JSON_BYTES_MAX] = JSON_BYTES_MAX,
        /// Bytes of the body of a login at `/c/login`; more is answered 413. Can be lowered only.
        login_bytes_max: u64 [KIB..=LOGIN_BYTES_MAX] = LOGIN_BYTES_MAX,
        /// Bytes of a token request's form; more is answered 413. Can be lowered only.
        token_form_bytes_max: u64 [KIB..=TOKEN_FORM_BYTES_MAX] = TOKEN_FORM_BYTES_MAX,
        /// Open connections in total. Lowered at start when the process may not open so many files.
        connections_max: u64 [1..=1_000_000] = CONNECTIONS_MAX,
        /// Open connections of one address; of an IPv6 client, of its /64 network.
        connections_per_ip_max: u64 [1..=1_000_000] = CONNECTIONS_PER_IP_MAX,
        /// Concurrent streams of one HTTP/2 connection. Their answers hold at most 8 MiB that is to be sent, and take turns beyond;
        /// what is read ahead behind that is bounded for all connections together (`storage.read_ahead_bytes_max`).
        streams_per_connection_max: u64 [1..=10_000] = STREAMS_PER_CONNECTION_MAX,
        /// Entries of a page of repositories when the client does not ask for a number. Pages of tags and referrers then
        /// have as many as they may: clients ask for them once and do not follow `Link`.
        page_entries_default: u64 [1..=10_000] = PAGE_ENTRIES_DEFAULT,
        /// Entries of any page of the registry's API at most; a larger wish is lowered to this.
        page_entries_max: u64 [1..=10_000] = PAGE_ENTRIES_MAX,
    }
}

section! {
    /// Prometheus metrics, on a listener of their own. What each means is in `metrics.md`.
    struct Metrics {
        /// Address and port, or `off`. The path is `/metrics`. When the default port is taken and nothing was
        /// configured, a free one is used and logged.
        listen: MetricsListen = MetricsListen::At(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), METRICS_PORT)),
        /// Allows an address beyond loopback. The metrics need no login.
        expose: bool = false,
    }
}

choice! {
    /// Shape of the log.
    enum LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

section! {
    /// The log, on standard error.
    struct Log {
        /// Shape of the lines.
        format: LogFormat = LogFormat::Text,
        /// What is logged.
        level: LogFilter = LogFilter::info(),
    }
}

section! {
    /// What matters at the very first start only.
    struct Bootstrap {
        /// Password of the first administrator, `admin`. Usually given as the environment variable
        /// `TAFFRAIL_ADMIN_PASSWORD`. Without it a random one is made, kept in `DIR/initial-admin-password`, and
        /// printed if standard output is a terminal. Ignored once there is an administrator.
        admin_password: Option<Secret> = None,
    }
}
