//! HTTP/1.1 by hand: exactly the bytes a test wants to send, for what no client library would write.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

/// A server that says nothing for this long says nothing.
const READ_TIMEOUT: Duration = Duration::from_secs(15);

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawAnswer {
    /// The status code.
    pub status: u16,
    /// Names in lowercase, and values.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl RawAnswer {
    /// A header's value, or the empty string.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Sends `bytes` on a new connection and reads answers until the server closes it or falls silent. Add
/// `Connection: close` to the last request to end without a wait.
///
/// # Errors
/// When the connection cannot be made, or what comes back is not HTTP/1.1.
pub fn exchange(host: &str, bytes: &[u8]) -> Result<Vec<RawAnswer>> {
    let mut socket = TcpStream::connect(host)?;
    socket.set_read_timeout(Some(READ_TIMEOUT))?;
    // The server may close before it has read all: that is one of the answers we are after.
    let _ = socket.write_all(bytes);
    let mut received = Vec::new();
    let mut piece = [0; 16 << 10];
    loop {
        match socket.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => received.extend_from_slice(&piece[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::WouldBlock) => break,
            Err(error) if error.kind() == ErrorKind::TimedOut => break,
            Err(error) => return Err(error).context("reading the answer"),
        }
    }
    parse(&received, bytes.starts_with(b"HEAD "))
}

/// A connection that stays: one request, one answer, and no thread between the clock and the socket.
#[derive(Debug)]
pub struct Connection {
    socket: TcpStream,
    received: Vec<u8>,
}

impl Connection {
    /// Connects to `host`.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn open(host: &str) -> Result<Self> {
        let socket = TcpStream::connect(host)?;
        socket.set_read_timeout(Some(READ_TIMEOUT))?;
        socket.set_nodelay(true)?;
        Ok(Self { socket, received: Vec::with_capacity(16 << 10) })
    }

    /// Sends one request, as it stands, and reads its answer, which has a `Content-Length` unless it is one to a HEAD.
    ///
    /// # Errors
    /// When the connection ends before the answer does, or it is not HTTP/1.1.
    pub fn ask(&mut self, request: &[u8]) -> Result<RawAnswer> {
        self.socket.write_all(request)?;
        self.received.clear();
        let to_head = request.starts_with(b"HEAD ");
        let mut piece = [0; 16 << 10];
        while !is_whole(&self.received, to_head) {
            let count = self.socket.read(&mut piece)?;
            ensure!(count > 0, "the connection ended after {:?}", lossy(&self.received));
            self.received.extend_from_slice(&piece[..count]);
        }
        parse(&self.received, to_head)?.pop().context("an answer")
    }
}

/// Whether a head with all of its `Content-Length` is here.
fn is_whole(received: &[u8], to_head: bool) -> bool {
    let Some(end) = find(received, b"\r\n\r\n") else { return false };
    let head = lossy(&received[..end]).to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    to_head || received.len() >= end + 4 + length.unwrap_or(0_usize)
}

/// A GET of `path`, which is sent as it stands, with more header lines (each ended by CR LF).
///
/// # Errors
/// As [`exchange`], and when not exactly one answer comes.
pub fn get(host: &str, path: &str, header_lines: &str) -> Result<RawAnswer> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{header_lines}\r\n");
    let mut answers = exchange(host, request.as_bytes())?;
    answers.pop().filter(|_| answers.is_empty()).with_context(|| format!("one answer to GET {path}"))
}

fn parse(mut rest: &[u8], to_head: bool) -> Result<Vec<RawAnswer>> {
    let mut answers = Vec::new();
    while !rest.is_empty() {
        let end = find(rest, b"\r\n\r\n").with_context(|| format!("a whole head in {:?}", lossy(rest)))?;
        let head = String::from_utf8_lossy(&rest[..end]).into_owned();
        rest = &rest[end + 4..];
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
        let status: u16 = status.with_context(|| format!("a status line in {head:?}"))?;
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
            .collect();
        let header =
            |name: &str| headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        let body = if to_head || status < 200 || status == 204 || status == 304 {
            Vec::new()
        } else if header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            take_chunks(&mut rest)?
        } else {
            let length = header("content-length").and_then(|value| value.parse().ok()).unwrap_or(rest.len());
            let (body, after) = rest.split_at(length.min(rest.len()));
            rest = after;
            body.to_vec()
        };
        answers.push(RawAnswer { status, headers, body });
    }
    Ok(answers)
}

fn take_chunks(rest: &mut &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = find(rest, b"\r\n").context("the end of a chunk's size")?;
        let size =
            usize::from_str_radix(lossy(&rest[..end]).split(';').next().unwrap_or_default().trim(), 16)?;
        let chunk = rest.get(end + 2..end + 2 + size).context("a whole chunk")?;
        body.extend_from_slice(chunk);
        *rest = rest.get(end + 2 + size + 2..).unwrap_or_default();
        if size == 0 {
            return Ok(body);
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_with_its_last_byte() {
        let bytes = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno";
        assert!((0..bytes.len()).all(|end| !is_whole(&bytes[..end], false)));
        assert!(is_whole(bytes, false) && is_whole(&bytes[..bytes.len() - 2], true));
    }

    #[test]
    fn two_answers_on_one_connection_are_told_apart() {
        let bytes = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nnoHTTP/1.1 200 OK\r\n\
                      Transfer-Encoding: chunked\r\n\r\n3\r\nyes\r\n0\r\n\r\n";
        let answers = parse(bytes, false).unwrap();
        assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [404, 200]);
        assert_eq!(answers[0].text() + &answers[1].text(), "noyes");
    }
}
