//! The load: HTTP/1.1 over a plain socket, cheap enough not to be what is measured.
//!
//! Answers are received into one buffer that is used again and again, and thrown away; requests go out from memory that
//! is prepared. A client that verifies what it pulls costs half a processor second per gigabyte more, the same against
//! every server.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::net::{AddressFamily, RecvFlags, SocketType};

use crate::content::Blob;

/// Bytes received at once.
const BUFFER_BYTES: usize = 256 << 10;

/// The head of an answer is shorter, or is none of a registry.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// A server that says nothing for so long hangs.
const SILENCE: Duration = Duration::from_secs(120);

/// Piece of a body that is sent chunked, as Go's client does it.
const CHUNK_BYTES: usize = 32 << 10;

/// Whether a connection serves one request or many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reuse {
    /// As most clients.
    KeepAlive,
    /// A new connection for each request.
    Never,
}

/// What becomes of the bytes of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Receive {
    /// They are copied into the client, as every real client has to.
    Copy,
    /// The kernel throws them away: what is left is the server and the loopback.
    Discard,
}

/// The body of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Body<'a> {
    None,
    Bytes(&'a [u8]),
    /// With its length.
    Blob(&'a Blob),
    /// In chunks, its length untold: how docker pushes.
    Chunked(&'a Blob),
}

/// What came back, without the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Path and query of `Location`.
    pub(crate) location: Option<String>,
    pub(crate) challenge: Option<String>,
    /// Bytes of the body.
    pub(crate) bytes: u64,
}

impl Answer {
    /// Demands a status.
    pub(crate) fn expect(self, status: u16) -> Result<Self> {
        ensure!(self.status == status, "answered {} where {status} was due", self.status);
        Ok(self)
    }
}

/// How long the body of an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Length {
    Known(u64),
    Chunked,
}

#[derive(Debug)]
struct Head {
    answer: Answer,
    length: Length,
    closes: bool,
    /// Where the body begins in the buffer.
    end: usize,
}

/// One client.
#[derive(Debug)]
pub(crate) struct Connection {
    host: String,
    authorization: String,
    reuse: Reuse,
    receive: Receive,
    socket: Option<TcpStream>,
    buffer: Vec<u8>,
    out: Vec<u8>,
    /// Body bytes of the answer under way that are not received.
    left: u64,
    /// Whether the connection ends with the answer under way.
    closes: bool,
}

impl Connection {
    /// A connection to `host` (`address:port`) with an `Authorization` of that value, or without when it is empty.
    pub(crate) fn open(host: &str, authorization: &str) -> Result<Self> {
        let header = match authorization {
            "" => String::new(),
            value => format!("Authorization: {value}\r\n"),
        };
        let mut connection = Self {
            host: host.to_owned(),
            authorization: header,
            reuse: Reuse::KeepAlive,
            receive: Receive::Copy,
            socket: None,
            buffer: vec![0; BUFFER_BYTES],
            out: Vec::new(),
            left: 0,
            closes: false,
        };
        connection.socket = Some(connection.dial()?);
        Ok(connection)
    }

    /// The same with a smaller buffer, for many connections.
    pub(crate) fn buffer_bytes(mut self, bytes: usize) -> Self {
        self.buffer = vec![0; bytes.clamp(HEAD_BYTES_MAX, BUFFER_BYTES)];
        self
    }

    pub(crate) fn reuse(mut self, reuse: Reuse) -> Self {
        self.reuse = reuse;
        self
    }

    pub(crate) fn receive(mut self, receive: Receive) -> Self {
        self.receive = receive;
        self
    }

    fn dial(&self) -> Result<TcpStream> {
        let socket =
            TcpStream::connect(&self.host).with_context(|| format!("connecting to {}", self.host))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(SILENCE))?;
        socket.set_write_timeout(Some(SILENCE))?;
        Ok(socket)
    }

    /// One request and its whole answer.
    pub(crate) fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &str,
        body: Body<'_>,
    ) -> Result<Answer> {
        let answer = self.begin(method, path, headers, body)?;
        self.finish()?;
        Ok(answer)
    }

    /// A GET of the whole, or of what `headers` say.
    pub(crate) fn get(&mut self, path: &str, headers: &str) -> Result<Answer> {
        self.request("GET", path, headers, Body::None)
    }

    /// Sends a request and receives the head of the answer; [`Connection::finish`] receives the rest.
    pub(crate) fn begin(
        &mut self,
        method: &str,
        path: &str,
        headers: &str,
        body: Body<'_>,
    ) -> Result<Answer> {
        let mut socket = match self.socket.take() {
            Some(socket) => socket,
            None => self.dial()?,
        };
        self.send(&mut socket, method, path, headers, body)
            .with_context(|| format!("sending {method} {path}"))?;
        let (mut head, filled) =
            receive_head(&mut socket, &mut self.buffer).with_context(|| format!("{method} {path}"))?;
        if method == "HEAD" || head.answer.status == 204 || head.answer.status == 304 {
            head.length = Length::Known(0);
        }
        let here = (filled - head.end) as u64;
        match head.length {
            Length::Known(bytes) => {
                ensure!(here <= bytes, "{method} {path}: more than one answer");
                head.answer.bytes = bytes;
                self.left = bytes - here;
            }
            Length::Chunked => {
                let rest = self.buffer.get(head.end..filled).unwrap_or_default().to_vec();
                head.answer.bytes = receive_chunks(&mut socket, rest)?;
                self.left = 0;
            }
        }
        self.socket = Some(socket);
        self.closes = head.closes || self.reuse == Reuse::Never;
        Ok(head.answer)
    }

    /// Receives what is left of the answer.
    pub(crate) fn finish(&mut self) -> Result<()> {
        while self.left > 0 {
            let socket = self.socket.as_mut().context("an open connection")?;
            let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(self.buffer.len());
            let buffer = self.buffer.get_mut(..most).unwrap_or_default();
            let count = match self.receive {
                Receive::Copy => socket.read(buffer)?,
                Receive::Discard => rustix::net::recv(&*socket, buffer, RecvFlags::TRUNC)?.1,
            };
            ensure!(count > 0, "the answer ends {} bytes early", self.left);
            self.left -= count as u64;
        }
        if self.closes {
            self.socket = None;
        }
        Ok(())
    }

    /// Receives the first `bytes` of the answer under way, or all when it is shorter, and hangs up on the rest. Returns how many they
    /// were.
    pub(crate) fn take(&mut self, answer: &Answer, bytes: u64) -> Result<u64> {
        let wanted = bytes.min(answer.bytes);
        self.left = self.left.saturating_sub(answer.bytes - wanted);
        self.closes = true;
        self.finish()?;
        Ok(wanted)
    }

    fn send(
        &mut self,
        socket: &mut TcpStream,
        method: &str,
        path: &str,
        headers: &str,
        body: Body<'_>,
    ) -> Result<()> {
        let out = &mut self.out;
        out.clear();
        write!(out, "{method} {path} HTTP/1.1\r\nHost: {}\r\n{}{headers}", self.host, self.authorization)?;
        let length = match body {
            Body::None if method == "GET" || method == "HEAD" => None,
            Body::None => Some(0),
            Body::Bytes(bytes) => Some(bytes.len() as u64),
            Body::Blob(blob) => Some(blob.bytes),
            Body::Chunked(_) => {
                out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
                None
            }
        };
        if let Some(length) = length {
            write!(out, "Content-Length: {length}\r\n")?;
        }
        out.extend_from_slice(b"\r\n");
        match body {
            Body::None => socket.write_all(out)?,
            Body::Bytes(bytes) => {
                out.extend_from_slice(bytes);
                socket.write_all(out)?;
            }
            Body::Blob(blob) if blob.bytes <= CHUNK_BYTES as u64 => {
                blob.parts().for_each(|part| out.extend_from_slice(part));
                socket.write_all(out)?;
            }
            Body::Blob(blob) => {
                socket.write_all(out)?;
                for part in blob.parts() {
                    socket.write_all(part)?;
                }
            }
            Body::Chunked(blob) => {
                for piece in blob.parts().flat_map(|part| part.chunks(CHUNK_BYTES)) {
                    write!(out, "{:x}\r\n", piece.len())?;
                    out.extend_from_slice(piece);
                    out.extend_from_slice(b"\r\n");
                    if out.len() >= CHUNK_BYTES {
                        socket.write_all(out)?;
                        out.clear();
                    }
                }
                out.extend_from_slice(b"0\r\n\r\n");
                socket.write_all(out)?;
            }
        }
        Ok(())
    }
}

fn receive_head(socket: &mut TcpStream, buffer: &mut [u8]) -> Result<(Head, usize)> {
    let mut filled = 0;
    loop {
        let count = socket.read(buffer.get_mut(filled..).unwrap_or_default())?;
        ensure!(count > 0, "the connection was closed before an answer");
        // The end may lie across two receptions.
        let from = filled.saturating_sub(3);
        filled += count;
        let seen = buffer.get(from..filled).unwrap_or_default();
        if let Some(position) = seen.windows(4).position(|window| window == b"\r\n\r\n") {
            let end = from + position + 4;
            let head = parse_head(buffer.get(..end).unwrap_or_default(), end)?;
            return Ok((head, filled));
        }
        ensure!(filled < HEAD_BYTES_MAX, "an answer without an end of its head");
    }
}

fn parse_head(head: &[u8], end: usize) -> Result<Head> {
    let text = std::str::from_utf8(head).context("an answer's head")?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.get(9..12)).and_then(|code| code.parse().ok());
    let status = status.with_context(|| format!("a status line in {text:?}"))?;
    let mut found = Head {
        answer: Answer { status, location: None, challenge: None, bytes: 0 },
        length: Length::Known(0),
        closes: false,
        end,
    };
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        match name.len() {
            14 if name.eq_ignore_ascii_case("content-length") => {
                found.length = Length::Known(value.parse().context("a length")?);
            }
            17 if name.eq_ignore_ascii_case("transfer-encoding") => found.length = Length::Chunked,
            8 if name.eq_ignore_ascii_case("location") => {
                found.answer.location = Some(path_of(value).to_owned())
            }
            10 if name.eq_ignore_ascii_case("connection") => {
                found.closes = value.eq_ignore_ascii_case("close");
            }
            16 if name.eq_ignore_ascii_case("www-authenticate") => {
                found.answer.challenge = Some(value.to_owned());
            }
            _ => {}
        }
    }
    Ok(found)
}

/// Receives a chunked body whose beginning is `rest`; returns the length of its content.
fn receive_chunks(socket: &mut TcpStream, mut rest: Vec<u8>) -> Result<u64> {
    let (mut bytes, mut at) = (0_u64, 0_usize);
    let mut piece = vec![0; CHUNK_BYTES];
    loop {
        let line = rest.get(at..).and_then(|tail| tail.windows(2).position(|window| window == b"\r\n"));
        if let Some(length) = line {
            let digits = rest.get(at..at + length).unwrap_or_default();
            let digits = std::str::from_utf8(digits)?.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(digits, 16).context("the size of a chunk")?;
            let next = at + length + 2 + size + 2;
            if rest.len() >= next {
                if size == 0 {
                    return Ok(bytes);
                }
                bytes += size as u64;
                at = next;
                continue;
            }
        }
        let count = socket.read(&mut piece)?;
        ensure!(count > 0, "the connection was closed in the middle of a chunk");
        rest.drain(..at);
        at = 0;
        rest.extend_from_slice(piece.get(..count).unwrap_or_default());
    }
}

/// Path and query of a URL, or what was a path already.
pub(crate) fn path_of(url: &str) -> &str {
    match url.split_once("://") {
        None => url,
        Some((_, rest)) => rest.find('/').map_or("/", |slash| rest.get(slash..).unwrap_or("/")),
    }
}

/// A path with one more parameter.
pub(crate) fn with_query(path: &str, query: &str) -> String {
    let joint = if path.contains('?') { '&' } else { '?' };
    format!("{path}{joint}{query}")
}

/// Sends a request that stands ready and receives its answer, without keeping anything for the connection.
pub(crate) fn ask(socket: &mut TcpStream, request: &[u8], buffer: &mut [u8]) -> Result<u16> {
    socket.write_all(request)?;
    let (head, filled) = receive_head(socket, buffer)?;
    let Length::Known(bytes) = head.length else {
        bail!("an answer without a length");
    };
    let rest = usize::try_from(bytes)?.saturating_sub(filled - head.end);
    socket.read_exact(buffer.get_mut(..rest).context("a short answer")?)?;
    Ok(head.answer.status)
}

/// A bare connection from a local address of the caller's choice, for tests of very many clients.
pub(crate) fn dial_from(address: Ipv4Addr, host: &str) -> Result<TcpStream> {
    let host: SocketAddr = host.parse().with_context(|| format!("an address in {host}"))?;
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    rustix::net::bind(&socket, &SocketAddrV4::new(address, 0))?;
    rustix::net::connect(&socket, &host)?;
    let socket = TcpStream::from(socket);
    socket.set_read_timeout(Some(SILENCE))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Answers each request on one connection with the next of `answers`, and returns what it received.
    fn serve(answers: Vec<&'static str>) -> (String, std::thread::JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let thread = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let (mut received, mut piece) = (Vec::new(), [0; 4096]);
            for answer in answers {
                let count = socket.read(&mut piece).unwrap();
                received.extend_from_slice(&piece[..count]);
                socket.write_all(answer.as_bytes()).unwrap();
            }
            received
        });
        (host, thread)
    }

    #[test]
    fn answers_on_one_connection_are_told_apart_and_their_bodies_counted() {
        let (host, server) = serve(vec![
            "HTTP/1.1 202 Accepted\r\nLocation: http://x:1/v2/a?b=c\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nyes\r\n2;x=y\r\nok\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 404 Not Found\r\nContent-Length: 7\r\n\r\n",
        ]);
        let mut connection = Connection::open(&host, "Bearer t").unwrap();
        let begun = connection.request("POST", "/v2/x/", "", Body::None).unwrap();
        assert_eq!((begun.status, begun.location.as_deref()), (202, Some("/v2/a?b=c")));
        assert_eq!(connection.get("/two", "").unwrap().bytes, 5);
        assert_eq!(connection.get("/three", "Accept: */*\r\n").unwrap().bytes, 5);
        let head = connection.request("HEAD", "/four", "", Body::None).unwrap();
        assert_eq!((head.status, head.bytes), (404, 0));
        let sent = String::from_utf8(server.join().unwrap()).unwrap();
        assert!(sent.starts_with("POST /v2/x/ HTTP/1.1\r\nHost: 127.0.0.1:"), "{sent}");
        assert_eq!(sent.matches("Authorization: Bearer t\r\n").count(), 4);
        assert!(sent.contains("Content-Length: 0\r\n\r\nGET /two"), "{sent}");
    }

    #[test]
    fn an_answer_that_ends_early_is_an_error() {
        let (host, server) = serve(vec!["HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello"]);
        let mut connection = Connection::open(&host, "").unwrap();
        assert!(connection.get("/", "").unwrap_err().to_string().contains("4 bytes early"));
        server.join().unwrap();
    }

    #[test]
    fn a_query_is_joined_and_a_location_is_cut_to_its_path() {
        assert_eq!(with_query("/a?b=c", "d=e"), "/a?b=c&d=e");
        assert_eq!(with_query("/a", "d=e"), "/a?d=e");
        assert_eq!(path_of("https://h:1/a?b"), "/a?b");
        assert_eq!(path_of("/a"), "/a");
    }

    #[test]
    fn who_takes_a_part_of_an_answer_hangs_up_on_the_rest() {
        let (host, server) =
            serve(vec!["HTTP/1.1 206 Partial Content\r\nContent-Length: 1000\r\n\r\n0123456789"]);
        let mut connection = Connection::open(&host, "").unwrap();
        let answer = connection.begin("GET", "/", "Range: bytes=5-\r\n", Body::None).unwrap();
        assert_eq!(connection.take(&answer, 10).unwrap(), 10);
        assert!(connection.socket.is_none());
        server.join().unwrap();
    }
}
