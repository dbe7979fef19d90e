//! S-93: what HTTP/2 lets a client do without paying for it. Each flood ends its connection with the right code, costs little
//! memory and processor time, and others are served meanwhile.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use reqwest::Method;
use taffrail_tests::frames::{End, Frames, code, flag, frame, integer, kind, setting};
use taffrail_tests::http::{Extra, Registry, sha256};
use taffrail_tests::images::noise;
use taffrail_tests::server::{Options, Server, Tls};
use taffrail_tests::usage::{anonymous_bytes, processor_time};

const REPOSITORY: &str = "library/streams";
/// What one connection may cost in memory (S-93).
const GROWTH_BYTES_MAX: u64 = 32 << 20;
/// What one flood may cost in processor time (S-93).
const PROCESSOR_TIME_MAX: Duration = Duration::from_secs(1);
/// Frames of a flood: far more than any bound.
const FLOOD_FRAMES: usize = 100_000;
/// Frames that are sent together.
const BATCH: usize = 500;
/// A connection that has not ended by then does not end.
const END_WAIT: Duration = Duration::from_secs(10);
/// `limits.streams_per_connection_max` as it comes.
const STREAMS_MAX: usize = 250;
/// `limits.write_stall_secs` and `limits.body_window_secs` of these tests.
const STALL_SECS: u64 = 3;
/// Requests of somebody else that a flood must let through, at least.
const WITNESSED_MIN: u32 = 1;
/// … and how long each may take.
const WITNESS_WAIT: Duration = Duration::from_secs(5);

/// A server with TLS and little patience.
struct Stage {
    server: Server,
    admin: Registry,
}

impl Stage {
    fn set() -> Result<Self> {
        let options = Options { tls: Tls::Files, ..Options::default() }
            .key("limits", "write_stall_secs", STALL_SECS)
            .key("limits", "body_window_secs", STALL_SECS);
        let server = Server::start_with(options)?;
        let admin = server.admin()?;
        // What the first requests of a process cost is not what is measured.
        for _ in 0..3 {
            ensure!(Frames::connect(&server, &[]).and_then(|mut frames| ask(&mut frames))? == 200);
        }
        Ok(Self { server, admin })
    }

    fn pid(&self) -> Result<u32> {
        self.server.pid().context("a running server")
    }

    fn connect(&self) -> Result<Frames> {
        Frames::connect(&self.server, &[])
    }

    /// Lets `flood` happen, and holds memory, processor time and the service to others against their bounds.
    fn endure<T>(&self, flood: impl FnOnce() -> Result<T>) -> Result<T> {
        let pid = self.pid()?;
        let (memory, time) = (anonymous_bytes(pid)?, processor_time(pid)?);
        let over = AtomicBool::new(false);
        let (came_of_it, witnessed, memory_max) = thread::scope(|scope| {
            let witness = scope.spawn(|| -> Result<u32> {
                let other = self.server.client(None)?;
                let mut served = 0;
                while !over.load(Ordering::Relaxed) || served < WITNESSED_MIN {
                    let began = Instant::now();
                    ensure!(other.probe("/healthz")? == 200);
                    ensure!(began.elapsed() < WITNESS_WAIT, "another client waited {:?}", began.elapsed());
                    served += 1;
                    thread::sleep(Duration::from_millis(20));
                }
                Ok(served)
            });
            let gauge = scope.spawn(|| -> Result<u64> {
                let mut memory_max = 0;
                while !over.load(Ordering::Relaxed) {
                    memory_max = memory_max.max(anonymous_bytes(pid)?);
                    thread::sleep(Duration::from_millis(5));
                }
                Ok(memory_max.max(anonymous_bytes(pid)?))
            });
            let came_of_it = flood();
            over.store(true, Ordering::Relaxed);
            (came_of_it, witness.join(), gauge.join())
        });
        let came_of_it = came_of_it?;
        let Ok(witnessed) = witnessed else { bail!("the witness panicked") };
        ensure!(witnessed? >= WITNESSED_MIN);
        let Ok(memory_max) = memory_max else { bail!("the gauge panicked") };
        let growth = memory_max?.saturating_sub(memory);
        let spent = processor_time(pid)?.saturating_sub(time);
        ensure!(growth <= GROWTH_BYTES_MAX, "memory grew by {} KiB", growth >> 10);
        ensure!(spent <= PROCESSOR_TIME_MAX, "it took {spent:?} of processor time");
        Ok(came_of_it)
    }

    /// Sends batches until the connection ends; returns how, and how many were sent whole.
    fn flood(&self, batch: impl Fn(&mut Frames) -> Vec<u8>) -> Result<(End, usize)> {
        self.endure(|| {
            let mut frames = self.connect()?;
            let mut sent = 0;
            while sent < FLOOD_FRAMES / BATCH {
                let bytes = batch(&mut frames);
                if !frames.send(&bytes)? {
                    break;
                }
                sent += 1;
            }
            Ok((frames.end(END_WAIT)?, sent * BATCH))
        })
    }

    fn is_calmed(&self, name: &str, batch: impl Fn(&mut Frames) -> Vec<u8>) -> Result<()> {
        let (end, sent) = self.flood(batch).with_context(|| name.to_owned())?;
        ensure!(end == End::GoAway(code::ENHANCE_YOUR_CALM), "{name}: {end:?} after {sent} frames");
        Ok(())
    }

    fn push_token(&self) -> Result<String> {
        Ok(format!("Bearer {}", self.admin.token(&[&format!("repository:{REPOSITORY}:pull,push")])?))
    }

    fn metric(&self, name: &str) -> Result<String> {
        let log = self.server.log();
        let address = log
            .lines()
            .find_map(|line| line.split_once("taffrail::serve: metrics address=").map(|(_, address)| address))
            .context("the address of the metrics")?;
        let page = taffrail_tests::raw::get(address.trim(), "/metrics", "")?.text();
        let line = page.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        Ok(line.trim().to_owned())
    }

    /// Waits until a metric has this value.
    fn await_metric(&self, name: &str, value: &str) -> Result<()> {
        let since = Instant::now();
        loop {
            let now = self.metric(name)?;
            if now == value {
                return Ok(());
            }
            ensure!(since.elapsed() < END_WAIT, "{name} is {now:?}, not {value:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A request without a body either way, to see whether the connection lives.
fn ask(frames: &mut Frames) -> Result<u16> {
    let stream = frames.request("HEAD", "/healthz", &[], false)?;
    frames.status(stream)
}

/// `count` equal frames.
fn same(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> impl Fn(&mut Frames) -> Vec<u8> {
    let batch = frame(kind, flags, stream, payload).repeat(BATCH);
    move |_| batch.clone()
}

#[test]
fn s_93_streams_that_are_opened_and_reset_at_once_end_the_connection() -> Result<()> {
    let stage = Stage::set()?;
    stage.is_calmed("rapid reset", |frames| {
        let head = frames.head("GET", "/v2/", &[]);
        let mut batch = Vec::new();
        for _ in 0..BATCH / 2 {
            let stream = frames.stream();
            batch.extend(frame(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, stream, &head));
            batch.extend(frame(kind::RST_STREAM, 0, stream, &code::CANCEL.to_be_bytes()));
        }
        batch
    })?;
    // And with the reset held back until the request is at work, so that no queue is ever long.
    let end = stage.endure(|| {
        let mut frames = stage.connect()?;
        for _ in 0..FLOOD_FRAMES {
            let stream = frames.request("GET", "/v2/", &[], true)?;
            frames.send(&frame(kind::PING, 0, 0, b"reached?"))?;
            let pong = |frame: &taffrail_tests::frames::Frame| frame.kind == kind::PING && frame.flags == 1;
            let reset = frame(kind::RST_STREAM, 0, stream, &code::CANCEL.to_be_bytes());
            if frames.find(END_WAIT, pong).is_err() || !frames.send(&reset)? {
                break;
            }
        }
        frames.end(END_WAIT)
    })?;
    ensure!(end == End::GoAway(code::ENHANCE_YOUR_CALM), "paced: {end:?}");
    Ok(())
}

#[test]
fn s_93_frames_that_carry_nothing_end_the_connection() -> Result<()> {
    let stage = Stage::set()?;
    stage.is_calmed("PING", same(kind::PING, 0, 0, b"12345678"))?;
    stage.is_calmed("PING answers", same(kind::PING, 1, 0, b"12345678"))?;
    stage.is_calmed("SETTINGS", same(kind::SETTINGS, 0, 0, &[]))?;
    let table = [&setting::HEADER_TABLE_SIZE.to_be_bytes()[..], &u32::MAX.to_be_bytes()].concat();
    stage.is_calmed("SETTINGS with tables", same(kind::SETTINGS, 0, 0, &table))?;
    stage.is_calmed("PRIORITY", same(kind::PRIORITY, 0, 1, &[0, 0, 0, 3, 16]))?;
    stage.is_calmed("WINDOW_UPDATE", same(kind::WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()))?;
    stage.is_calmed("frames of no known type", same(0xbe, 0, 0, &[]))?;
    ensure!(stage.metric("taffrail_http2_floods_total")? == "7");
    Ok(())
}

#[test]
fn s_93_a_head_that_does_not_end_or_unfolds_ends_the_connection() -> Result<()> {
    let stage = Stage::set()?;
    for piece in [&b""[..], &[0x00, 1, b'a', 1, b'b'].repeat(200)] {
        let begun = AtomicBool::new(false);
        stage.is_calmed("CONTINUATION", |frames| {
            let mut batch = Vec::new();
            if !begun.swap(true, Ordering::Relaxed) {
                batch = frame(kind::HEADERS, 0, 1, &frames.head("GET", "/v2/", &[]));
            }
            batch.extend(frame(kind::CONTINUATION, 0, 1, piece).repeat(BATCH));
            batch
        })?;
    }
    // One entry of the table, named again and again: each byte stands for 4 KB.
    stage.is_calmed("a bomb in HPACK", |frames| {
        let mut head = vec![0x40, 1, b'x'];
        head.extend(integer(0x00, 7, 4000));
        head.extend(vec![b'y'; 4000]);
        head.extend(vec![0x80 | 62; 10_000]);
        let stream = frames.stream();
        frame(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, stream, &head)
    })?;
    Ok(())
}

#[test]
fn s_93_a_head_beyond_the_limit_is_refused_and_the_connection_lives() -> Result<()> {
    let stage = Stage::set()?;
    stage.endure(|| {
        let mut frames = stage.connect()?;
        for (bytes, status) in [(30 << 10, 200), (33 << 10, 431), (60 << 10, 431), (100 << 10, 431)] {
            // In seven pieces, because no frame takes more than 16 KiB and a head comes in few.
            let head = frames.head("HEAD", "/healthz", &[]);
            let value = "v".repeat(bytes / 7);
            let names = ["a", "b", "c", "d", "e", "f", "g"];
            let stream = frames.stream();
            let mut whole = frame(kind::HEADERS, flag::END_STREAM, stream, &head);
            for (at, name) in names.iter().enumerate() {
                let flags = if at + 1 == names.len() { flag::END_HEADERS } else { 0 };
                let piece = taffrail_tests::frames::field(name, &value);
                whole.extend(frame(kind::CONTINUATION, flags, stream, &piece));
            }
            ensure!(frames.send(&whole)?);
            let answered = frames.status(stream)?;
            ensure!(answered == status, "{bytes} bytes of header: {answered}");
        }
        ensure!(ask(&mut frames)? == 200);
        Ok(())
    })
}

#[test]
fn s_93_data_frames_without_data_end_the_connection() -> Result<()> {
    let stage = Stage::set()?;
    let token = stage.push_token()?;
    let location = stage.admin.begin_upload(REPOSITORY)?;
    let begun = AtomicBool::new(false);
    stage.is_calmed("empty DATA", |frames| {
        let mut batch = Vec::new();
        if !begun.swap(true, Ordering::Relaxed) {
            let head = frames.head("PATCH", &location, &[("authorization", &token)]);
            batch = frame(kind::HEADERS, flag::END_HEADERS, 1, &head);
        }
        batch.extend(frame(kind::DATA, 0, 1, &[]).repeat(BATCH));
        batch
    })
}

#[test]
fn s_93_what_the_protocol_forbids_is_answered_with_its_own_code() -> Result<()> {
    let stage = Stage::set()?;
    let zero = frame(kind::WINDOW_UPDATE, 0, 0, &[0; 4]);
    let most = frame(kind::WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes());
    let long = frame(kind::PING, 0, 0, &vec![0; (16 << 10) + 1]);
    let cases = [
        ("a frame that is too long", long, End::GoAway(code::FRAME_SIZE_ERROR)),
        ("a window that overflows", most, End::GoAway(code::FLOW_CONTROL_ERROR)),
        ("a window update of nothing", zero, End::GoAway(code::PROTOCOL_ERROR)),
        ("data on no stream", frame(kind::DATA, 0, 0, b"x"), End::GoAway(code::PROTOCOL_ERROR)),
        ("data on a stream that never was", frame(kind::DATA, 0, 9, b"x"), End::GoAway(code::PROTOCOL_ERROR)),
        ("a head out of nowhere", frame(kind::CONTINUATION, 4, 1, b""), End::GoAway(code::PROTOCOL_ERROR)),
        ("a stream of ours", frame(kind::HEADERS, 5, 2, &[0x82]), End::GoAway(code::PROTOCOL_ERROR)),
    ];
    for (name, bytes, expected) in cases {
        let end = stage.endure(|| {
            let mut frames = stage.connect()?;
            frames.send(&bytes)?;
            frames.end(END_WAIT)
        })?;
        ensure!(end == expected, "{name}: {end:?}");
    }
    // CVE-2025-8671: mistakes that make us reset the stream, so that it does not count while its request is at work.
    stage.is_calmed("streams that we have to reset", |frames| {
        let head = frames.head("GET", "/v2/", &[]);
        let mut batch = Vec::new();
        for _ in 0..BATCH / 2 {
            let stream = frames.stream();
            batch.extend(frame(kind::HEADERS, flag::END_HEADERS, stream, &head));
            batch.extend(frame(kind::WINDOW_UPDATE, 0, stream, &0x7fff_ffff_u32.to_be_bytes()));
        }
        batch
    })
}

#[test]
fn l_21_one_stream_more_than_allowed_is_refused_and_the_connection_lives() -> Result<()> {
    let stage = Stage::set()?;
    let mut frames = Frames::connect(&stage.server, &[(setting::INITIAL_WINDOW_SIZE, 0)])?;
    // Their answers have a body, which waits for a window.
    let open: Vec<u32> =
        (0..STREAMS_MAX).map(|_| frames.request("GET", "/v2/", &[], false)).collect::<Result<_>>()?;
    let more = frames.request("HEAD", "/healthz", &[], false)?;
    let reset = frames.find(END_WAIT, |frame| frame.stream == more)?;
    ensure!(reset.code() == Some(code::REFUSED_STREAM), "{reset:?}");
    for stream in &open[..2] {
        frames.send(&frame(kind::RST_STREAM, 0, *stream, &code::CANCEL.to_be_bytes()))?;
    }
    ensure!(ask(&mut frames)? == 200);
    Ok(())
}

#[test]
fn s_93_pulls_whose_client_grants_no_window_are_reset_alone_and_hold_little() -> Result<()> {
    let stage = Stage::set()?;
    let blob = noise(rand::random(), 3 << 20);
    let digest = stage.admin.push_blob(REPOSITORY, &blob)?;
    let path = format!("/v2/{REPOSITORY}/blobs/{digest}");
    let token = format!("Bearer {}", stage.admin.token(&[&format!("repository:{REPOSITORY}:pull")])?);
    // Without any window; with one that takes whole pieces of what the library is given at once; and with one that takes a part.
    for window in [0, 128 << 10, 100_000] {
        stage.endure(|| {
            let mut frames = Frames::connect(&stage.server, &[(setting::INITIAL_WINDOW_SIZE, window)])?;
            // The window of the connection is not what they wait for.
            frames.send(&frame(kind::WINDOW_UPDATE, 0, 0, &(64_u32 << 20).to_be_bytes()))?;
            let mut stalled = Vec::new();
            for _ in 0..STREAMS_MAX - 1 {
                stalled.push(frames.request("GET", &path, &[("authorization", &token)], false)?);
            }
            ensure!(ask(&mut frames)? == 200, "beside the stalled ones");
            let began = Instant::now();
            // The stream of the question between may find no window for its end either, and its turn may come first.
            let first = frames
                .find(END_WAIT, |frame| frame.kind == kind::RST_STREAM && stalled.contains(&frame.stream))?;
            ensure!(first.code() == Some(code::CANCEL), "{first:?}");
            ensure!(began.elapsed() < Duration::from_secs(STALL_SECS + 2), "after {:?}", began.elapsed());
            ensure!(ask(&mut frames)? == 200, "after the first was reset");
            // A part is enough: the rest waits for its turn to hold a block, and is as patient. Ending the connection ends all.
            drop(frames);
            stage.await_metric("taffrail_http_requests_in_flight", "0")
        })?;
    }
    ensure!(stage.metric("taffrail_http2_streams_stalled_total")? != "0");
    // What was given up is not counted as a whole answer, and nothing is left that would hold the blob back.
    ensure!(stage.server.log().contains("complete=false"));
    ensure!(stage.admin.blob(REPOSITORY, &digest)?.expect(&[200])?.body == blob);
    Ok(())
}

/// A body behind the answer to a HEAD breaks the stream for a client that keeps to the protocol.
#[test]
fn the_answer_to_a_head_ends_with_its_headers_whoever_gives_it() -> Result<()> {
    let stage = Stage::set()?;
    let mut frames = Frames::connect(&stage.server, &[])?;
    for (path, status) in [("/healthz", 200), ("/readyz", 200), ("/v2/", 401), ("/v2/UPPER/manifests/x", 400)]
    {
        let stream = frames.request("HEAD", path, &[], false)?;
        let head = frames.find(END_WAIT, |frame| frame.stream == stream)?;
        ensure!(head.kind == kind::HEADERS && head.flags & flag::END_STREAM != 0, "{path}: {head:?}");
        ensure!(head.status() == Some(status), "{path}: {:?}", head.status());
    }
    Ok(())
}

/// The end of an answer needs no window: a client that granted exactly as much as there is takes all of it, and is not waited for.
#[test]
fn l_21_a_window_of_exactly_the_length_of_an_answer_is_enough_for_its_end() -> Result<()> {
    let stage = Stage::set()?;
    let token = format!("Bearer {}", stage.admin.token(&[&format!("repository:{REPOSITORY}:pull")])?);
    for len in [64 << 10, 128 << 10, 256 << 10, 512 << 10] {
        let blob = noise(rand::random(), len as usize);
        let digest = stage.admin.push_blob(REPOSITORY, &blob)?;
        let path = format!("/v2/{REPOSITORY}/blobs/{digest}");
        let mut frames = Frames::connect(&stage.server, &[(setting::INITIAL_WINDOW_SIZE, len)])?;
        frames.send(&frame(kind::WINDOW_UPDATE, 0, 0, &(1_u32 << 20).to_be_bytes()))?;
        let stream = frames.request("GET", &path, &[("authorization", &token)], false)?;
        let mut received = Vec::new();
        let mut is_over = false;
        while !is_over {
            let came = frames.find(END_WAIT, |frame| frame.stream == stream)?;
            ensure!(came.code().is_none(), "{len}: reset after {} bytes: {came:?}", received.len());
            if came.kind == kind::DATA {
                received.extend_from_slice(&came.payload);
            }
            is_over = came.flags & flag::END_STREAM != 0;
        }
        ensure!(received == blob, "{len}: {} bytes came", received.len());
        stage.await_metric("taffrail_http_requests_in_flight", "0")?;
    }
    ensure!(stage.metric("taffrail_http2_streams_stalled_total")? == "0");
    Ok(())
}

#[test]
fn s_93_a_pull_that_goes_on_is_not_hurt_by_one_that_does_not() -> Result<()> {
    let stage = Stage::set()?;
    let blob = noise(rand::random(), 3 << 20);
    let digest = stage.admin.push_blob(REPOSITORY, &blob)?;
    let path = format!("/v2/{REPOSITORY}/blobs/{digest}");
    let token = format!("Bearer {}", stage.admin.token(&[&format!("repository:{REPOSITORY}:pull")])?);
    let mut frames = stage.connect()?;
    let stalled = frames.request("GET", &path, &[("authorization", &token)], false)?;
    let healthy = frames.request("GET", &path, &[("authorization", &token)], false)?;
    let (mut received, mut reset, mut ended) = (Vec::new(), None, false);
    let began = Instant::now();
    let mut granted = Instant::now();
    while reset.is_none() || !ended {
        ensure!(began.elapsed() < END_WAIT, "ended {ended}, reset {reset:?}, {} bytes", received.len());
        // Slower than the stalled one's end: the whole takes about twice as long, and is never idle for long.
        if granted.elapsed() > Duration::from_millis(150) {
            granted = Instant::now();
            let grant = (96_u32 << 10).to_be_bytes();
            frames.send(
                &[frame(kind::WINDOW_UPDATE, 0, 0, &grant), frame(kind::WINDOW_UPDATE, 0, healthy, &grant)]
                    .concat(),
            )?;
        }
        let Some(came) = frames.next(Duration::from_millis(20))? else { continue };
        if came.stream == stalled {
            reset = came.code().or(reset);
        } else if came.stream == healthy && came.kind == kind::DATA {
            received.extend_from_slice(&came.payload);
            ended |= came.flags & flag::END_STREAM != 0;
            // What the other took of the connection's window is not this one's fault.
            frames.send(&frame(kind::WINDOW_UPDATE, 0, 0, &(32_u32 << 10).to_be_bytes()))?;
        }
    }
    ensure!(reset == Some(code::CANCEL), "{reset:?}");
    ensure!(sha256(&received) == digest, "{} bytes", received.len());
    Ok(())
}

#[test]
fn l_21_more_pulls_than_a_connection_holds_blocks_for_all_come_whole() -> Result<()> {
    let stage = Stage::set()?;
    let blob = noise(rand::random(), (1 << 20) + 1);
    let digest = stage.admin.push_blob(REPOSITORY, &blob)?;
    let path = format!("/v2/{REPOSITORY}/blobs/{digest}");
    let token = format!("Bearer {}", stage.admin.token(&[&format!("repository:{REPOSITORY}:pull")])?);
    let mut frames = Frames::connect(&stage.server, &[(setting::INITIAL_WINDOW_SIZE, 2 << 20)])?;
    frames.send(&frame(kind::WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes()))?;
    let mut under_way: HashMap<u32, Vec<u8>> = HashMap::new();
    for _ in 0..100 {
        under_way.insert(frames.request("GET", &path, &[("authorization", &token)], false)?, Vec::new());
    }
    while !under_way.is_empty() {
        let came = frames.next(END_WAIT)?.with_context(|| format!("{} are left", under_way.len()))?;
        let Some(received) = under_way.get_mut(&came.stream) else { continue };
        ensure!(came.code().is_none(), "reset: {came:?}");
        if came.kind == kind::DATA {
            received.extend_from_slice(&came.payload);
        }
        if came.flags & flag::END_STREAM != 0 {
            ensure!(under_way.remove(&came.stream).is_some_and(|received| received == blob), "another blob");
        }
    }
    Ok(())
}

#[test]
fn s_93_a_window_that_is_granted_by_the_byte_ends_the_connection() -> Result<()> {
    let stage = Stage::set()?;
    let digest = stage.admin.push_blob(REPOSITORY, &noise(rand::random(), 1 << 20))?;
    let path = format!("/v2/{REPOSITORY}/blobs/{digest}");
    let token = format!("Bearer {}", stage.admin.token(&[&format!("repository:{REPOSITORY}:pull")])?);
    let end = stage.endure(|| {
        let mut frames = Frames::connect(&stage.server, &[(setting::INITIAL_WINDOW_SIZE, 0)])?;
        let stream = frames.request("GET", &path, &[("authorization", &token)], false)?;
        ensure!(frames.status(stream)? == 200);
        let grant = frame(kind::WINDOW_UPDATE, 0, stream, &1_u32.to_be_bytes());
        for _ in 0..FLOOD_FRAMES {
            if !frames.send(&grant)? {
                break;
            }
        }
        frames.end(END_WAIT)
    })?;
    ensure!(end == End::GoAway(code::ENHANCE_YOUR_CALM), "{end:?}");
    Ok(())
}

#[test]
fn s_93_an_upload_that_sends_nothing_is_answered_408_and_can_be_resumed() -> Result<()> {
    let stage = Stage::set()?;
    let token = stage.push_token()?;
    let bytes = noise(rand::random(), 40_000);
    let location = stage.admin.begin_upload(REPOSITORY)?;
    let answered = stage.endure(|| {
        let mut frames = stage.connect()?;
        let silent = frames.request("PATCH", &location, &[("authorization", &token)], true)?;
        // What came before the silence is kept.
        for part in bytes[..10_000].chunks(1000) {
            frames.send(&frame(kind::DATA, 0, silent, part))?;
        }
        let began = Instant::now();
        ensure!(ask(&mut frames)? == 200, "beside the silent one");
        let status = frames.status(silent)?;
        let waited = began.elapsed();
        ensure!(waited < Duration::from_secs(3 * STALL_SECS), "it was answered after {waited:?}");
        ensure!(ask(&mut frames)? == 200, "after the silent one");
        stage.await_metric("taffrail_http_requests_in_flight", "0")?;
        Ok(status)
    })?;
    ensure!(answered == 408, "answered {answered}");
    let send = |method: &Method, path: &str, extra: &Extra| {
        stage.admin.send(method, REPOSITORY, "pull,push", path, extra)
    };
    let state = send(&Method::GET, &location, &Extra::default())?.expect(&[204])?;
    ensure!(state.header("range") == "0-9999", "Range: {}", state.header("range"));
    let rest =
        Extra::body("application/octet-stream", &bytes[10_000..]).header("content-range", "10000-39999");
    send(&Method::PATCH, &location, &rest)?.expect(&[202])?;
    let joint = if location.contains('?') { '&' } else { '?' };
    let put = format!("{location}{joint}digest={}", sha256(&bytes));
    send(&Method::PUT, &put, &Extra::default())?.expect(&[201])?;
    Ok(())
}

#[test]
fn s_93_a_client_that_reads_nothing_at_all_is_cut() -> Result<()> {
    let stage = Stage::set()?;
    let digest = stage.admin.push_blob(REPOSITORY, &noise(rand::random(), 8 << 20))?;
    let path = format!("/v2/{REPOSITORY}/blobs/{digest}");
    let token = format!("Bearer {}", stage.admin.token(&[&format!("repository:{REPOSITORY}:pull")])?);
    stage.endure(|| {
        let mut frames = Frames::connect(&stage.server, &[(setting::INITIAL_WINDOW_SIZE, 0x7fff_ffff)])?;
        frames.send(&frame(kind::WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes()))?;
        // Windows enough for everything; what is sent together is written without looking at what comes.
        let mut batch = Vec::new();
        for _ in 0..STREAMS_MAX {
            let stream = frames.stream();
            let head = frames.head("GET", &path, &[("authorization", &token)]);
            batch.extend(frame(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, stream, &head));
        }
        frames.send(&batch)?;
        stage.await_metric("taffrail_connections_timed_out_total{reason=\"write_stall\"}", "1")
    })
}
