//! Bytes that rot under a running server (P-04), and every way on which a blob leaves it (`server.pull_path`, TLS): no wrong byte is ever
//! sent. Damage of the disk ends the answer before it, and the blob is unknown from then on; damage of the page cache alone is passed
//! by, and nobody notices.

use std::fs::File;
use std::io::{BufReader, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use reqwest::Method;
use rustix::fs::{Advice, fadvise};
use taffrail_tests::http::{Extra, Registry, sha256};
use taffrail_tests::images::noise;
use taffrail_tests::loop_disk::{self, LoopDisk};
use taffrail_tests::raw;
use taffrail_tests::server::{Options, PULL_PATHS, Server, Tls};
use taffrail_tests::tools;

const REPOSITORY: &str = "library/rot";

/// What is checked and sent at a time.
const BLOCK_BYTES: usize = 256 << 10;

/// Nine blocks and a piece: more than a reader goes through one by one, and a last block that is not full.
const BLOB_BYTES: usize = 9 * BLOCK_BYTES + 333;

/// Where the damage is: in the first block, in the middle, in the last piece.
const DAMAGED_AT: [usize; 3] = [700, 6 * BLOCK_BYTES + 100_000, BLOB_BYTES - 1];

/// Pulls until a blob is in the page cache, however the server reads.
const PULLS: usize = 3;

/// Room for the store and a few blobs.
const DISK_MIB: u64 = 512;

/// Bytes in front of the damage by which it is found on the disk: in the same block of the file system, and nowhere else.
const MARK_BYTES: usize = 64;

/// Where the damage is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Met {
    InMemory,
    OnDisk,
}

/// What is asked for once the blob is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    All,
    /// From a little in front of the damage to a little behind it.
    Around,
}

/// A server with one blob in a file of its own after the other.
struct Rig {
    server: Server,
    admin: Registry,
    pushed: u64,
}

/// A blob that was pushed.
struct Blob {
    bytes: Vec<u8>,
    path: String,
    file: PathBuf,
}

impl Rig {
    fn start(options: Options) -> Result<Self> {
        let server = Server::start_with(options)?;
        Ok(Self { admin: server.admin()?, server, pushed: 0 })
    }

    /// Pushes a blob that is like no other.
    fn push(&mut self) -> Result<Blob> {
        self.pushed += 1;
        let solo = self.server.data_dir().join("store/solo");
        let before = files(&solo)?;
        let bytes = noise(self.pushed, BLOB_BYTES);
        let digest = self.admin.push_blob(REPOSITORY, &bytes)?;
        let file =
            files(&solo)?.into_iter().find(|file| !before.contains(file)).context("the blob's file")?;
        Ok(Blob { bytes, path: format!("/v2/{REPOSITORY}/blobs/{digest}"), file })
    }

    /// The status, and the bytes of the body that came before its end, or the connection's.
    fn get(&self, blob: &Blob, range: Option<(usize, usize)>) -> Result<(u16, Vec<u8>)> {
        let token = self.admin.token(&[&format!("repository:{REPOSITORY}:pull")])?;
        let range =
            range.map_or_else(String::new, |(from, to)| format!("Range: bytes={from}-{}\r\n", to - 1));
        let lines = format!("Authorization: Bearer {token}\r\n{range}");
        let answer = raw::get(&self.server.host(), &blob.path, &lines)?;
        Ok((answer.status, answer.body))
    }

    fn pull_whole(&self, blob: &Blob) -> Result<()> {
        let (status, body) = self.get(blob, None)?;
        ensure!(status == 200 && body == blob.bytes, "answered {status} with {} bytes", body.len());
        Ok(())
    }
}

impl Blob {
    fn open(&self) -> Result<File> {
        Ok(File::options().read(true).write(true).open(&self.file)?)
    }

    /// Flips a bit of its file, in the page cache and on the disk; gives where.
    fn flip(&self, at: usize) -> Result<u64> {
        let file = self.open()?;
        let mut held = Vec::new();
        BufReader::new(&file).read_to_end(&mut held)?;
        let start = find(&held, &self.bytes[..64]).context("the payload in the file")?;
        let at = start + at;
        file.write_all_at(&[held[at] ^ 4], at as u64)?;
        file.sync_all()?;
        Ok(at as u64)
    }

    /// Takes its file, which is clean, out of the page cache.
    fn forget(&self) -> Result<()> {
        Ok(fadvise(&self.open()?, 0, None, Advice::DontNeed)?)
    }
}

/// All files below a folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[test]
fn a_damaged_block_is_never_sent_on_any_path() -> Result<()> {
    for path in PULL_PATHS {
        let mut rig = Rig::start(Options::default().key("server", "pull_path", path))?;
        for at in DAMAGED_AT {
            for (met, asked) in [(Met::InMemory, Asked::All), (Met::OnDisk, Asked::Around)] {
                never_sent(&mut rig, at, met, asked).with_context(|| {
                    format!("{path}: byte {at} damaged, met {met:?}, asked for {asked:?}")
                })?;
            }
        }
        ensure!(rig.server.terminate()?.success(), "{path}: the server did not drain");
    }
    Ok(())
}

fn never_sent(rig: &mut Rig, at: usize, met: Met, asked: Asked) -> Result<()> {
    let blob = rig.push()?;
    for _ in 0..PULLS {
        rig.pull_whole(&blob)?;
    }
    blob.flip(at)?;
    if met == Met::OnDisk {
        blob.forget()?;
    }
    // What is whole is served as long as nobody has met the damage.
    let elsewhere = if at < BLOB_BYTES / 2 { BLOB_BYTES - 5_000..BLOB_BYTES } else { 10..5_000 };
    let (status, body) = rig.get(&blob, Some((elsewhere.start, elsewhere.end)))?;
    ensure!(status == 206 && body == blob.bytes[elsewhere], "a range without damage was answered {status}");

    let (from, to) = match asked {
        Asked::All => (0, BLOB_BYTES),
        Asked::Around => (at.saturating_sub(BLOCK_BYTES), BLOB_BYTES.min(at + BLOCK_BYTES)),
    };
    let (status, body) = rig.get(&blob, (asked == Asked::Around).then_some((from, to)))?;
    if matches!(status, 200 | 206) {
        let block = at / BLOCK_BYTES * BLOCK_BYTES;
        ensure!(from + body.len() <= block.max(from), "{} bytes came, up to and into the block", body.len());
        ensure!(body == blob.bytes[from..from + body.len()], "wrong bytes were sent");
    } else {
        ensure!(status >= 404, "damage was answered {status}");
    }
    let (status, _) = rig.get(&blob, None)?;
    ensure!(status == 404, "a blob that was found damaged is answered {status}");
    Ok(())
}

/// Over TLS everything is copied, whatever `server.pull_path` says.
#[test]
fn a_damaged_block_is_never_sent_over_tls() -> Result<()> {
    let options = Options { tls: Tls::Files, ..Options::default() }.key("server", "pull_path", "sendfile");
    let mut rig = Rig::start(options)?;
    let get = |rig: &Rig, blob: &Blob| {
        rig.admin.send(&Method::GET, REPOSITORY, "pull", &blob.path, &Extra::default())
    };
    for at in DAMAGED_AT {
        for met in [Met::InMemory, Met::OnDisk] {
            let blob = rig.push()?;
            for _ in 0..PULLS {
                ensure!(get(&rig, &blob)?.expect(&[200])?.body == blob.bytes);
            }
            blob.flip(at)?;
            if met == Met::OnDisk {
                blob.forget()?;
            }
            // An answer that is cut is an error of the client.
            let completed = get(&rig, &blob).is_ok_and(|answer| answer.status == 200);
            ensure!(!completed, "byte {at}, {met:?}: an answer with damage in it was completed");
            get(&rig, &blob)?.expect(&[404])?;
        }
    }
    Ok(())
}

/// The disk has the right bytes and memory has not: they come from the disk, and nothing is set aside.
#[test]
fn damage_of_the_page_cache_alone_is_passed_by_on_every_path() -> Result<()> {
    if !tools::present(&loop_disk::NEEDS)? {
        return Ok(());
    }
    for path in PULL_PATHS {
        let disk = LoopDisk::make(DISK_MIB)?;
        let data_dir = Some(disk.mount_point().join("data"));
        let options = Options { data_dir, ..Options::default() }.key("server", "pull_path", path);
        let mut rig = Rig::start(options)?;
        for at in DAMAGED_AT {
            passed_by(&mut rig, &disk, at).with_context(|| format!("{path}: byte {at} damaged"))?;
        }
        ensure!(!rig.server.log().contains("damaged"), "{path}: {}", rig.server.log_tail());
        ensure!(rig.server.terminate()?.success(), "{path}: the server did not drain");
    }
    Ok(())
}

fn passed_by(rig: &mut Rig, disk: &LoopDisk, at: usize) -> Result<()> {
    let blob = rig.push()?;
    for _ in 0..PULLS {
        rig.pull_whole(&blob)?;
    }
    let at_in_file = blob.flip(at)?;
    // The file system's pages are clean and wrong now. Below it, the byte is put right.
    let right = &blob.bytes[at - MARK_BYTES..=at];
    let mut damaged = right.to_vec();
    damaged[MARK_BYTES] ^= 4;
    disk.replace((at_in_file - MARK_BYTES as u64) % loop_disk::BLOCK_BYTES, &damaged, right)?;
    let in_memory = |what: &str| {
        let mut byte = [0];
        blob.open()?.read_exact_at(&mut byte, at_in_file)?;
        ensure!(byte[0] == blob.bytes[at] ^ 4, "{what} the page cache is whole: this shows nothing");
        Ok(())
    };
    in_memory("before the pulls")?;
    for range in [None, Some((at.saturating_sub(BLOCK_BYTES), BLOB_BYTES.min(at + BLOCK_BYTES))), None] {
        let (status, body) = rig.get(&blob, range)?;
        let (from, to) = range.unwrap_or((0, BLOB_BYTES));
        ensure!(matches!(status, 200 | 206), "{range:?} was answered {status}");
        ensure!(body == blob.bytes[from..to], "{range:?}: wrong bytes, or {} of them", body.len());
    }
    in_memory("after them")?;
    ensure!(sha256(&blob.bytes) == blob.path.rsplit('/').next().unwrap_or_default());
    match rig.admin.send(&Method::HEAD, REPOSITORY, "pull", &blob.path, &Extra::default())?.status {
        200 => Ok(()),
        status => bail!("the blob was set aside: HEAD answers {status}"),
    }
}
