//! The choice of `storage.io`: what the server says and does where `io_uring` is forbidden, as in most containers.

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::io::Errno;
use taffrail_tests::images::noise;
use taffrail_tests::sandbox;
use taffrail_tests::scene::PUBLIC;
use taffrail_tests::server::{Options, Server};

/// Long enough for a file of its own, and for several writes of it.
const BLOB_BYTES: usize = 5 << 20;

/// The line of a server that fell back.
const FELL_BACK: &str = "large writes go through threads";

/// The line of a server with a ring.
const HAS_RING: &str = "large writes go through io_uring";

fn with_io(io: &str) -> Options {
    Options::default().key("storage", "io", io)
}

/// Does `work` where `io_uring` is forbidden.
fn forbidden<T: Send>(errno: Errno, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            sandbox::forbid_io_uring(errno)?;
            work()
        });
        thread.join().map_err(|_| anyhow!("the test panicked"))?
    })
}

fn push_and_pull(server: &Server) -> Result<()> {
    let admin = server.admin()?;
    admin.push_blob(&format!("{PUBLIC}/io"), &noise(7, BLOB_BYTES))?;
    Ok(())
}

#[test]
fn auto_falls_back_to_threads_with_one_line_where_io_uring_is_forbidden() -> Result<()> {
    for errno in [Errno::PERM, Errno::NOSYS] {
        let mut server = forbidden(errno, || Server::start_with(with_io("auto")))?;
        push_and_pull(&server)?;
        let log = server.log();
        ensure!(log.matches(FELL_BACK).count() == 1 && !log.contains(HAS_RING), "{errno}:\n{log}");
        ensure!(log.contains("io_uring cannot be set up"), "{errno}: the line has no reason\n{log}");
        ensure!(server.terminate()?.success(), "{errno}: the server did not drain");
    }
    Ok(())
}

#[test]
fn uring_does_not_start_where_it_is_forbidden_and_says_why() -> Result<()> {
    for errno in [Errno::PERM, Errno::NOSYS] {
        let started = forbidden(errno, || Server::start_with(with_io("uring")).map(drop));
        let error = format!("{:#}", started.err().context("a server without a ring started")?);
        ensure!(error.contains("storage.io is uring"), "{errno}: {error}");
        ensure!(error.contains("io_uring cannot be set up"), "{errno}: {error}");
    }
    Ok(())
}

#[test]
fn threads_asks_for_no_ring() -> Result<()> {
    let mut server = Server::start_with(with_io("threads"))?;
    push_and_pull(&server)?;
    ensure!(!server.log().contains(HAS_RING), "{}", server.log_tail());
    ensure!(server.terminate()?.success(), "the server did not drain");
    Ok(())
}
