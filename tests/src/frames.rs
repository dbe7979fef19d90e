//! HTTP/2 by hand: exactly the frames a test wants to send, over TLS, for what no client library would do.
//!
//! The client answers nothing by itself: no settings are acknowledged, no ping is answered, no window is granted.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::server::Server;

/// A server that neither reads nor says anything for this long does not want to.
const SILENCE: Duration = Duration::from_secs(15);

/// How often a socket that has nothing for us is looked at.
const POLL: Duration = Duration::from_micros(200);

/// Bytes that are handed to TLS at a time.
const PORTION_BYTES: usize = 64 << 10;

/// Types of frames (RFC 9113 section 6).
pub mod kind {
    /// DATA
    pub const DATA: u8 = 0;
    /// HEADERS
    pub const HEADERS: u8 = 1;
    /// PRIORITY
    pub const PRIORITY: u8 = 2;
    /// RST_STREAM
    pub const RST_STREAM: u8 = 3;
    /// SETTINGS
    pub const SETTINGS: u8 = 4;
    /// PING
    pub const PING: u8 = 6;
    /// GOAWAY
    pub const GOAWAY: u8 = 7;
    /// WINDOW_UPDATE
    pub const WINDOW_UPDATE: u8 = 8;
    /// CONTINUATION
    pub const CONTINUATION: u8 = 9;
}

/// Flags of frames.
pub mod flag {
    /// Nothing follows on this stream; of SETTINGS and PING: an answer.
    pub const END_STREAM: u8 = 1;
    /// The head is whole.
    pub const END_HEADERS: u8 = 4;
}

/// Error codes (RFC 9113 section 7).
pub mod code {
    /// PROTOCOL_ERROR
    pub const PROTOCOL_ERROR: u32 = 1;
    /// FLOW_CONTROL_ERROR
    pub const FLOW_CONTROL_ERROR: u32 = 3;
    /// FRAME_SIZE_ERROR
    pub const FRAME_SIZE_ERROR: u32 = 6;
    /// REFUSED_STREAM
    pub const REFUSED_STREAM: u32 = 7;
    /// CANCEL
    pub const CANCEL: u32 = 8;
    /// ENHANCE_YOUR_CALM
    pub const ENHANCE_YOUR_CALM: u32 = 11;
}

/// Settings (RFC 9113 section 6.5.2).
pub mod setting {
    /// SETTINGS_HEADER_TABLE_SIZE
    pub const HEADER_TABLE_SIZE: u16 = 1;
    /// SETTINGS_INITIAL_WINDOW_SIZE
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// See [`kind`].
    pub kind: u8,
    /// See [`flag`].
    pub flags: u8,
    /// The stream; 0 is the connection.
    pub stream: u32,
    /// The payload.
    pub payload: Vec<u8>,
}

impl Frame {
    /// The code of RST_STREAM or GOAWAY.
    #[must_use]
    pub fn code(&self) -> Option<u32> {
        let at = match self.kind {
            kind::RST_STREAM => 0,
            kind::GOAWAY => 4,
            _ => return None,
        };
        Some(u32::from_be_bytes(self.payload.get(at..at + 4)?.try_into().ok()?))
    }

    /// The status in HEADERS from a server that may keep no table.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        if self.kind != kind::HEADERS {
            return None;
        }
        let mut rest = self.payload.as_slice();
        while let [0x20..=0x3f, more @ ..] = rest {
            rest = more;
        }
        match *rest {
            [indexed @ 0x88..=0x8e, ..] => {
                [200, 204, 206, 304, 400, 404, 500].get(usize::from(indexed - 0x88)).copied()
            }
            // A literal with the name of the static table's entry 8.
            [0x08 | 0x18 | 0x48, length, ref value @ ..] => {
                let text = value.get(..usize::from(length & 0x7f))?;
                if length & 0x80 == 0 {
                    std::str::from_utf8(text).ok()?.parse().ok()
                } else {
                    huffman_digits(text)
                }
            }
            _ => None,
        }
    }
}

/// Three digits in HPACK's Huffman code, in which 0 to 2 have five bits and 3 to 9 have six.
fn huffman_digits(bytes: &[u8]) -> Option<u16> {
    let mut bits = bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| u16::from(byte >> bit & 1)));
    let mut number = 0;
    for _ in 0..3 {
        let mut value = 0;
        for _ in 0..5 {
            value = value << 1 | bits.next()?;
        }
        let digit = if value <= 2 { value } else { (value << 1 | bits.next()?).checked_sub(25)? + 3 };
        number = number * 10 + digit;
    }
    Some(number)
}

/// The bytes of a frame.
#[must_use]
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A field of a head, as a literal that no table keeps.
#[must_use]
pub fn field(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0x00];
    for text in [name, value] {
        bytes.extend_from_slice(&integer(0x00, 7, text.len()));
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes
}

/// HPACK's integer with a prefix of so many bits (RFC 7541 section 5.1).
#[must_use]
pub fn integer(pattern: u8, prefix_bits: u32, value: usize) -> Vec<u8> {
    let full = (1_usize << prefix_bits) - 1;
    let low = |value: usize| u8::try_from(value & 0xff).unwrap_or_default();
    if value < full {
        return vec![pattern | low(value)];
    }
    let mut bytes = vec![pattern | low(full)];
    let mut rest = value - full;
    while rest >= 0x80 {
        bytes.push(low(rest & 0x7f) | 0x80);
        rest >>= 7;
    }
    bytes.push(low(rest));
    bytes
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With a GOAWAY of this code.
    GoAway(u32),
    /// Without a word.
    Closed,
    /// It has not.
    Open,
}

/// A connection.
pub struct Frames {
    socket: TcpStream,
    tls: ClientConnection,
    host: String,
    received: Vec<u8>,
    closed: bool,
    gone: Option<u32>,
    next_stream: u32,
}

impl Frames {
    /// Connects, agrees on HTTP/2, and sends the preface with these settings. The server may keep no header table.
    ///
    /// # Errors
    /// When the server does not speak TLS, or not HTTP/2.
    pub fn connect(server: &Server, settings: &[(u16, u32)]) -> Result<Self> {
        let authority = &server.certificate().context("a server with TLS")?.authority;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(authority)?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let mut tls = ClientConnection::new(Arc::new(config), ServerName::try_from("127.0.0.1")?)?;
        tls.set_buffer_limit(None);
        let socket = TcpStream::connect(server.host())?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        let mut frames = Self {
            socket,
            tls,
            host: server.host(),
            received: Vec::new(),
            closed: false,
            gone: None,
            next_stream: 1,
        };
        let since = Instant::now();
        while frames.tls.is_handshaking() {
            ensure!(!frames.closed && since.elapsed() < SILENCE, "the TLS handshake failed");
            frames.exchange()?;
        }
        ensure!(frames.tls.alpn_protocol() == Some(b"h2"), "the server does not speak HTTP/2");
        let mut begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let payload: Vec<u8> = [(setting::HEADER_TABLE_SIZE, 0)]
            .iter()
            .chain(settings)
            .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
            .collect();
        begin.extend(frame(kind::SETTINGS, 0, 0, &payload));
        frames.send(&begin)?;
        Ok(frames)
    }

    /// The number of the next stream.
    pub fn stream(&mut self) -> u32 {
        let stream = self.next_stream;
        self.next_stream += 2;
        stream
    }

    /// The head of a request, in HPACK.
    #[must_use]
    pub fn head(&self, method: &str, path: &str, fields: &[(&str, &str)]) -> Vec<u8> {
        [(":method", method), (":scheme", "https"), (":authority", &self.host), (":path", path)]
            .iter()
            .chain(fields)
            .flat_map(|(name, value)| field(name, value))
            .collect()
    }

    /// Sends a request's head on a new stream, whose number it returns. `more` says whether a body is to follow.
    ///
    /// # Errors
    /// As [`Frames::send`].
    pub fn request(&mut self, method: &str, path: &str, fields: &[(&str, &str)], more: bool) -> Result<u32> {
        let stream = self.stream();
        let head = self.head(method, path, fields);
        let flags = if more { flag::END_HEADERS } else { flag::END_HEADERS | flag::END_STREAM };
        self.send(&frame(kind::HEADERS, flags, stream, &head))?;
        Ok(stream)
    }

    /// Sends bytes. False when the connection ended first, or the server stopped reading.
    ///
    /// # Errors
    /// When TLS breaks.
    pub fn send(&mut self, bytes: &[u8]) -> Result<bool> {
        for portion in bytes.chunks(PORTION_BYTES) {
            self.tls.writer().write_all(portion)?;
            let since = Instant::now();
            while self.tls.wants_write() && !self.closed {
                if !self.exchange()? && since.elapsed() > SILENCE {
                    return Ok(false);
                }
            }
            if self.closed {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The next frame, if one comes within `wait`.
    ///
    /// # Errors
    /// When TLS breaks.
    pub fn next(&mut self, wait: Duration) -> Result<Option<Frame>> {
        let since = Instant::now();
        loop {
            if let Some(frame) = self.take() {
                if frame.kind == kind::GOAWAY {
                    self.gone = frame.code();
                }
                return Ok(Some(frame));
            }
            if self.closed || since.elapsed() >= wait {
                return Ok(None);
            }
            self.exchange()?;
        }
    }

    /// The next frame that `wanted` accepts; others are passed over.
    ///
    /// # Errors
    /// When none comes within `wait`, or TLS breaks.
    pub fn find(&mut self, wait: Duration, wanted: impl Fn(&Frame) -> bool) -> Result<Frame> {
        let since = Instant::now();
        while let Some(frame) = self.next(wait.saturating_sub(since.elapsed()))? {
            if wanted(&frame) {
                return Ok(frame);
            }
        }
        anyhow::bail!(
            "the frame did not come within {wait:?} (closed: {}, gone: {:?})",
            self.closed,
            self.gone
        )
    }

    /// The status that is answered on a stream.
    ///
    /// # Errors
    /// When none comes in time.
    pub fn status(&mut self, stream: u32) -> Result<u16> {
        let head = self.find(SILENCE, |frame| frame.stream == stream && frame.kind == kind::HEADERS)?;
        head.status().with_context(|| format!("a status in {head:?}"))
    }

    /// Reads until the connection has ended, at most so long.
    ///
    /// # Errors
    /// When TLS breaks.
    pub fn end(&mut self, wait: Duration) -> Result<End> {
        let since = Instant::now();
        while let Some(left) = wait.checked_sub(since.elapsed()) {
            if self.next(left)?.is_none() {
                break;
            }
        }
        Ok(match (self.gone, self.closed) {
            (Some(code), _) => End::GoAway(code),
            (None, true) => End::Closed,
            (None, false) => End::Open,
        })
    }

    /// A whole frame of what has come.
    fn take(&mut self) -> Option<Frame> {
        let [high, middle, low, kind, flags, a, b, c, d, ..] = *self.received.as_slice() else { return None };
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        let payload = self.received.get(9..9 + length)?.to_vec();
        self.received.drain(..9 + length);
        Some(Frame { kind, flags, stream: u32::from_be_bytes([a, b, c, d]) & 0x7fff_ffff, payload })
    }

    /// Writes and reads what goes without waiting. Waits a moment, and says false, when nothing went.
    fn exchange(&mut self) -> Result<bool> {
        let mut moved = false;
        // What came is read first: it may say why nothing can be written any more.
        match self.tls.read_tls(&mut self.socket) {
            Ok(0) => self.closed = true,
            Ok(_) => {
                moved = true;
                self.tls.process_new_packets()?;
                let mut piece = [0; 16 << 10];
                loop {
                    match self.tls.reader().read(&mut piece) {
                        Ok(0) => {
                            self.closed = true;
                            break;
                        }
                        Ok(count) => self.received.extend_from_slice(&piece[..count]),
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        Err(error) => return Err(error).context("reading"),
                    }
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => self.closed = true,
        }
        if self.tls.wants_write() && !self.closed {
            match self.tls.write_tls(&mut self.socket) {
                Ok(_) => moved = true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // What the server said before is still to be read; then its end comes.
                Err(_) => self.drain(),
            }
        }
        if !moved && !self.closed {
            std::thread::sleep(POLL);
        }
        Ok(moved)
    }

    /// Reads what came before the connection broke.
    fn drain(&mut self) {
        let mut piece = [0; 16 << 10];
        while matches!(self.tls.read_tls(&mut self.socket), Ok(1..)) {
            if self.tls.process_new_packets().is_err() {
                break;
            }
            while let Ok(count @ 1..) = self.tls.reader().read(&mut piece) {
                self.received.extend_from_slice(&piece[..count]);
            }
        }
        self.closed = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_in_each_form() {
        let head =
            |payload: &[u8]| Frame { kind: kind::HEADERS, flags: 4, stream: 1, payload: payload.to_vec() };
        assert_eq!(head(&[0x20, 0x88, 0x00]).status(), Some(200));
        assert_eq!(head(&[0x48, 0x03, b'4', b'0', b'8']).status(), Some(408));
        // RFC 7541 appendix C.6.1.
        assert_eq!(head(&[0x48, 0x82, 0x64, 0x02]).status(), Some(302));
        assert_eq!(head(&[0x40]).status(), None);
    }

    #[test]
    fn integers_are_those_of_the_rfc() {
        // RFC 7541 appendix C.1.
        assert_eq!(integer(0, 5, 10), [10]);
        assert_eq!(integer(0, 5, 1337), [31, 154, 10]);
        assert_eq!(integer(0, 8, 42), [42]);
    }
}
