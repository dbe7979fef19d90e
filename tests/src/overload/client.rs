//! HTTP/1.1 for very many clients at once: one task each, from whichever loopback address, and no more memory than it needs.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

/// The head of an answer is shorter, or is none of a registry.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// The `number`th loopback address. The first ones are left to everybody else.
pub(crate) fn loopback(number: usize) -> Ipv4Addr {
    let [.., high, low] = (number + 10).to_be_bytes();
    Ipv4Addr::new(127, 0, high, low)
}

/// Connects from that address.
pub(crate) async fn dial(host: SocketAddr, from: Ipv4Addr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((from, 0)))?;
    let stream = socket.connect(host).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Connects from that address, with a receive buffer so small that hardly anything is taken unless it is read.
pub(crate) async fn dial_narrow(host: SocketAddr, from: Ipv4Addr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4 << 10)?;
    socket.bind(SocketAddr::from((from, 0)))?;
    Ok(socket.connect(host).await?)
}

/// A request's head, with more header lines (each ended by CR LF).
pub(crate) fn head(method: &str, path: &str, host: SocketAddr, lines: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n")
}

/// The head of an answer, and what came behind it.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) status: u16,
    /// In lowercase.
    pub(crate) head: String,
    /// Bytes of the body.
    pub(crate) length: u64,
    /// The first of them.
    pub(crate) first: Vec<u8>,
}

impl Begun {
    /// A header's value, in lowercase, or the empty string.
    pub(crate) fn header(&self, name: &str) -> &str {
        let line = self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map_or("", str::trim)
    }

    /// The path and query of `Location`, or the empty string.
    pub(crate) fn location(&self) -> &str {
        let location = self.header("location");
        let Some((_, rest)) = location.split_once("://") else { return location };
        rest.find('/').and_then(|at| rest.get(at..)).unwrap_or_default()
    }

    /// Whether the server ends the connection behind this answer.
    pub(crate) fn closes(&self) -> bool {
        self.header("connection") == "close"
    }
}

/// Reads the head of an answer.
pub(crate) async fn answer(stream: &mut (impl AsyncRead + Unpin), to_head: bool) -> Result<Begun> {
    let mut received = Vec::with_capacity(1 << 10);
    let end = loop {
        if let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        ensure!(received.len() < HEAD_BYTES_MAX, "an endless head");
        ensure!(stream.read_buf(&mut received).await? > 0, "the connection ended before the answer");
    };
    let first = received.split_off(end + 4);
    let head = String::from_utf8_lossy(&received).to_lowercase();
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).context("a status line")?;
    let mut begun = Begun { status, head, length: 0, first };
    ensure!(begun.header("transfer-encoding").is_empty(), "an answer in chunks");
    begun.length = if to_head { 0 } else { begun.header("content-length").parse().unwrap_or(0) };
    Ok(begun)
}

/// Takes the rest of an answer's body and throws it away.
pub(crate) async fn finish(stream: &mut (impl AsyncRead + Unpin), begun: &Begun) -> Result<()> {
    take(stream, begun.length.saturating_sub(begun.first.len() as u64), &mut vec![0; 16 << 10]).await
}

/// Takes so many bytes into `buffer`, again and again.
pub(crate) async fn take(stream: &mut (impl AsyncRead + Unpin), bytes: u64, buffer: &mut [u8]) -> Result<()> {
    let mut left = bytes;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let count = stream.read(buffer.get_mut(..most).unwrap_or_default()).await?;
        ensure!(count > 0, "the connection ended {left} bytes before the body");
        left -= count as u64;
    }
    Ok(())
}

/// One request and its whole answer.
pub(crate) async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &[u8]) -> Result<Begun> {
    stream.write_all(request).await?;
    // TLS keeps what the socket would not take, and nothing else would send it.
    stream.flush().await?;
    let begun = answer(stream, request.starts_with(b"HEAD ")).await?;
    finish(stream, &begun).await?;
    Ok(begun)
}

/// One request on a connection of its own that must have that status.
pub(crate) async fn ask_anew(host: SocketAddr, from: Ipv4Addr, request: &[u8], status: u16) -> Result<Begun> {
    let begun = ask(&mut dial(host, from).await?, request).await?;
    ensure!(begun.status == status, "answered {} where {status} was due", begun.status);
    Ok(begun)
}

/// Asks the same again and again, one request after the other, until it is time; gives the time that each took.
pub(crate) async fn sample(
    host: SocketAddr,
    request: &[u8],
    status: u16,
    until: Instant,
) -> Result<Vec<Duration>> {
    let mut stream = dial(host, Ipv4Addr::LOCALHOST).await?;
    let mut times = Vec::new();
    while Instant::now() < until {
        let began = Instant::now();
        let begun = ask(&mut stream, request).await?;
        times.push(began.elapsed());
        if begun.status != status {
            bail!("answered {} where {status} was due", begun.status);
        }
        if begun.closes() {
            stream = dial(host, Ipv4Addr::LOCALHOST).await?;
        }
    }
    Ok(times)
}

/// The time that `share` of them stay below: 0.5 is the median.
pub(crate) fn quantile(times: &mut [Duration], share: f64) -> Duration {
    times.sort_unstable();
    let last = times.len().saturating_sub(1);
    // Shares are of 1, and counts far below 2^52.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within 0 and the count")]
    let at = (last as f64 * share).ceil() as usize;
    times.get(at.min(last)).copied().unwrap_or_default()
}

/// Milliseconds, for people.
pub(crate) fn ms(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_one_of_the_times() {
        let mut times: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(quantile(&mut times, 0.99), Duration::from_millis(100));
        assert_eq!(quantile(&mut times, 0.0), Duration::from_millis(1));
        assert_eq!(quantile(&mut [], 0.5), Duration::ZERO);
    }

    #[test]
    fn every_thousand_clients_have_an_address() {
        assert_eq!(loopback(0), Ipv4Addr::new(127, 0, 0, 10));
        assert_eq!(loopback(250), Ipv4Addr::new(127, 0, 1, 4));
    }
}
