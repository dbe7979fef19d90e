//! Where one HTTP/1.1 request ends and the next begins, judged more strictly than a parser that must be lenient.
//!
//! Two programs that disagree about that can be made to read different requests out of the same bytes (request smuggling,
//! S-92). RFC 9112 lets a server repair several ambiguities; behind a proxy that repairs them the other way,
//! each is a hole. The guard reads every byte before the HTTP library does and refuses what has two readings: a bare line
//! feed in a head or in the trailers behind the last chunk, `Content-Length` beside `Transfer-Encoding` or twice, a transfer
//! coding other than exactly `chunked`.
//!
//! What must stay true: the guard finds the ends of bodies as the library does. It refuses nothing inside a body's data; when
//! it loses its way between chunks, so does the library, which then ends the connection. In trailers that would not hold: the
//! library takes a bare line feed for a part of the line, where others see its end, and the next request would be read as
//! more trailers.

/// Longest field name that the guard must recognise: `transfer-encoding`.
const NAME_BYTES_MAX: usize = 17;
/// Longest value that can be right: 20 digits, or `chunked`, with spaces around.
const VALUE_BYTES_MAX: usize = 64;

/// What the guard makes of some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing wrong so far.
    Fine,
    /// The byte at this index is where a head or a trailer became ambiguous.
    Refused(usize),
}

/// Follows one connection.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    place: Place,
    line: Line,
    framing: Framing,
}

/// Where in the byte stream we are.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before the first byte of a request.
    #[default]
    Between,
    /// In the request line.
    RequestLine,
    /// In the header section.
    Headers,
    /// In a body of known length, so many bytes before its end.
    Body(u64),
    /// In a chunked body.
    Chunk(Chunk),
    /// The library refuses what came; nothing more to guard.
    Lost,
}

/// Where in a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chunk {
    /// In the size: its value so far.
    Size(u64),
    /// After the size: spaces or extensions, up to the CR.
    Extension(u64),
    /// Before the LF of a size line.
    SizeLf(u64),
    /// In data, so many bytes before its end.
    Data(u64),
    /// Before the CR LF that ends data.
    DataCr,
    /// Before that LF.
    DataLf,
    /// At the start of a line after the last chunk.
    TrailerStart,
    /// Inside a trailer line.
    Trailer,
    /// Before the LF that ends a trailer line.
    TrailerLf,
    /// Before the LF that ends the body.
    EndLf,
}

/// The header line that is being read.
#[derive(Debug, Default)]
struct Line {
    name: Vec<u8>,
    value: Vec<u8>,
    in_value: bool,
    length: usize,
    last: u8,
}

impl Line {
    fn clear(&mut self) {
        self.name.clear();
        self.value.clear();
        self.in_value = false;
        self.length = 0;
        self.last = 0;
    }

    /// Takes the next bytes of the line, none of which is a line feed.
    fn extend(&mut self, bytes: &[u8]) {
        let Some(last) = bytes.last() else { return };
        self.length = self.length.saturating_add(bytes.len());
        self.last = *last;
        let mut rest = bytes;
        if !self.in_value {
            let colon = rest.iter().position(|byte| *byte == b':');
            let (name, value) = rest.split_at(colon.unwrap_or(rest.len()));
            let begin = room(&self.name, NAME_BYTES_MAX).min(name.len());
            self.name.extend(name[..begin].iter().map(u8::to_ascii_lowercase));
            let Some((_, value)) = value.split_first() else { return };
            self.in_value = true;
            rest = value;
        }
        let begin = room(&self.value, VALUE_BYTES_MAX).min(rest.len());
        self.value.extend_from_slice(&rest[..begin]);
    }
}

/// How many more bytes are kept. One more than the limit is, so that too long a text is seen to be wrong rather than cut to fit.
fn room(kept: &[u8], bytes_max: usize) -> usize {
    (bytes_max + 1).saturating_sub(kept.len())
}

/// What the header lines said about the body.
#[derive(Debug, Default)]
struct Framing {
    length: Option<u64>,
    chunked: bool,
}

impl Framing {
    /// Takes a complete header line. False when it makes the framing ambiguous.
    fn take(&mut self, line: &Line) -> bool {
        let value = line.value.trim_ascii();
        match line.name.as_slice() {
            // What was cut off might have changed what it says.
            b"content-length" | b"transfer-encoding" if line.value.len() > VALUE_BYTES_MAX => false,
            b"content-length" => {
                let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
                let parsed = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                let first = self.length.is_none() && !self.chunked;
                self.length = parsed;
                digits && parsed.is_some() && first
            }
            b"transfer-encoding" => {
                let first = self.length.is_none() && !self.chunked;
                self.chunked = true;
                value.eq_ignore_ascii_case(b"chunked") && first
            }
            _ => true,
        }
    }
}

impl Guard {
    /// Whether the connection is between two requests, with no byte of the next one seen.
    pub(crate) fn is_between(&self) -> bool {
        self.place == Place::Between
    }

    /// Whether the head of a request has begun and not ended.
    pub(crate) fn is_in_head(&self) -> bool {
        matches!(self.place, Place::RequestLine | Place::Headers)
    }

    /// Follows the next bytes of the connection. Not to be called again after `Refused`.
    pub(crate) fn follow(&mut self, bytes: &[u8]) -> Verdict {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            match self.place {
                Place::Between => match byte {
                    // RFC 9112 section 2.2: an empty line before a request line is to be ignored.
                    b'\r' | b'\n' => at += 1,
                    _ => {
                        self.line.clear();
                        self.framing = Framing::default();
                        self.place = Place::RequestLine;
                    }
                },
                Place::RequestLine | Place::Headers => {
                    // Line by line, not byte by byte: heads are most of what comes, tokens most of heads.
                    let left = bytes.get(at..).unwrap_or_default();
                    let line = left.split(|byte| *byte == b'\n').next().unwrap_or_default();
                    self.line.extend(line);
                    at += line.len();
                    if at == bytes.len() {
                        break;
                    }
                    if self.end_line() {
                        at += 1;
                    } else {
                        self.place = Place::Lost;
                        return Verdict::Refused(at);
                    }
                }
                Place::Body(left) => {
                    let step = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len() - at);
                    at += step;
                    self.place = match left - step as u64 {
                        0 => Place::Between,
                        left => Place::Body(left),
                    };
                }
                Place::Chunk(Chunk::Data(left)) => {
                    let step = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len() - at);
                    at += step;
                    self.place = Place::Chunk(match left - step as u64 {
                        0 => Chunk::DataCr,
                        left => Chunk::Data(left),
                    });
                }
                Place::Chunk(Chunk::TrailerStart | Chunk::Trailer) if byte == b'\n' => {
                    self.place = Place::Lost;
                    return Verdict::Refused(at);
                }
                Place::Chunk(chunk) => {
                    self.place = chunk.step(byte);
                    at += 1;
                }
                Place::Lost => return Verdict::Fine,
            }
        }
        Verdict::Fine
    }

    /// At the LF of a line. False when the line is refused.
    fn end_line(&mut self) -> bool {
        if self.line.last != b'\r' {
            return false;
        }
        let empty = self.line.length == 1;
        if self.place == Place::RequestLine {
            self.place = Place::Headers;
        } else if empty {
            self.place = match (self.framing.chunked, self.framing.length) {
                (true, _) => Place::Chunk(Chunk::Size(0)),
                (false, None | Some(0)) => Place::Between,
                (false, Some(length)) => Place::Body(length),
            };
        } else if !self.framing.take(&self.line) {
            return false;
        }
        self.line.clear();
        true
    }
}

impl Chunk {
    /// One byte outside of chunk data.
    fn step(self, byte: u8) -> Place {
        let next = match (self, byte) {
            (Chunk::Size(size), _) if byte.is_ascii_hexdigit() => {
                let digit = match byte {
                    b'0'..=b'9' => byte - b'0',
                    _ => byte.to_ascii_lowercase() - b'a' + 10,
                };
                match size.checked_mul(16) {
                    Some(size) => Chunk::Size(size | u64::from(digit)),
                    None => return Place::Lost,
                }
            }
            (Chunk::Size(size) | Chunk::Extension(size), b'\r') => Chunk::SizeLf(size),
            (Chunk::Size(size), b' ' | b'\t' | b';') => Chunk::Extension(size),
            (Chunk::Extension(_), b'\n') => return Place::Lost,
            (Chunk::Extension(size), _) => Chunk::Extension(size),
            (Chunk::SizeLf(0), b'\n') => Chunk::TrailerStart,
            (Chunk::SizeLf(size), b'\n') => Chunk::Data(size),
            (Chunk::DataCr, b'\r') => Chunk::DataLf,
            (Chunk::DataLf, b'\n') => Chunk::Size(0),
            (Chunk::TrailerStart, b'\r') => Chunk::EndLf,
            (Chunk::Trailer, b'\r') => Chunk::TrailerLf,
            (Chunk::TrailerStart | Chunk::Trailer, _) => Chunk::Trailer,
            (Chunk::TrailerLf, b'\n') => Chunk::TrailerStart,
            (Chunk::EndLf, b'\n') => return Place::Between,
            (
                Chunk::Size(_)
                | Chunk::SizeLf(_)
                | Chunk::DataCr
                | Chunk::DataLf
                | Chunk::TrailerLf
                | Chunk::EndLf
                | Chunk::Data(_),
                _,
            ) => return Place::Lost,
        };
        Place::Chunk(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The verdict on a text, which must not depend on how it was cut into reads.
    fn verdict(text: &str) -> Verdict {
        let whole = Guard::default().follow(text.as_bytes());
        let mut guard = Guard::default();
        let mut singly = Verdict::Fine;
        for (index, byte) in text.bytes().enumerate() {
            if let Verdict::Refused(_) = guard.follow(&[byte]) {
                singly = Verdict::Refused(index);
                break;
            }
        }
        assert_eq!(whole, singly, "{text:?}");
        whole
    }

    fn between_after(text: &str) -> bool {
        let mut guard = Guard::default();
        assert_eq!(guard.follow(text.as_bytes()), Verdict::Fine, "{text:?}");
        guard.is_between()
    }

    #[test]
    fn a_head_with_two_readings_is_refused() {
        for head in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 5",
            "Content-Length: 5\r\nContent-Length: 5",
            "Content-Length: 5\r\nContent-Length: 6",
            "Content-Length: 5, 5",
            "Content-Length: +5",
            "Content-Length: -5",
            "Content-Length: 0x5",
            "Content-Length:",
            "Content-Length: 18446744073709551616",
            "content-LENGTH: 5\r\ncOnTeNt-length: 5",
            "Transfer-Encoding: chunked, identity",
            "Transfer-Encoding: identity, chunked",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding: \"chunked\"",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding:",
        ] {
            let text = format!("POST / HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n");
            assert!(matches!(verdict(&text), Verdict::Refused(_)), "{head}");
        }
    }

    #[test]
    fn a_bare_line_feed_in_a_head_is_refused_where_it_stands() {
        assert_eq!(verdict("GET / HTTP/1.1\nHost: a\r\n\r\n"), Verdict::Refused(14));
        assert_eq!(verdict("GET / HTTP/1.1\r\nHost: a\n\r\n"), Verdict::Refused(23));
        assert_eq!(verdict("GET / HTTP/1.1\r\nHost: a\r\n\n"), Verdict::Refused(25));
    }

    #[test]
    fn a_bare_line_feed_in_a_trailer_is_refused_where_it_stands() {
        let head = "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel\nl\r\n";
        for (trailers, at) in [
            ("0\r\nA: b\n\r\n", 7),
            ("0\r\nA: b\n\n", 7),
            ("0\r\n\n", 3),
            ("0\r\nA: b\r\n\n", 9),
            ("0\r\nA: b\r\nC: d\n\r\n", 13),
        ] {
            let text = format!("{head}{trailers}GET /smuggled HTTP/1.1\r\n\r\n");
            assert_eq!(verdict(&text), Verdict::Refused(head.len() + at), "{trailers:?}");
        }
        assert!(between_after(&format!("{head}0\r\nA: b\r\nC: d\r\n\r\n")));
    }

    #[test]
    fn the_next_request_begins_where_the_body_ends() {
        let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        assert!(between_after(get));
        assert!(between_after(&format!("\r\n{get}{get}")));
        assert!(between_after("PUT / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"));
        assert!(!between_after("PUT / HTTP/1.1\r\nContent-Length: 4\r\n\r\nabc"));
        assert!(between_after("PUT / HTTP/1.1\r\nContent-Length: 0\r\n\r\n"));
        let chunked = "PUT / HTTP/1.1\r\nTransfer-Encoding: Chunked \r\n\r\n";
        assert!(between_after(&format!("{chunked}3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n")));
        assert!(between_after(&format!("{chunked}0 \r\nTrailer: x\r\n\r\n")));
        assert!(!between_after(&format!("{chunked}3\r\nabc\r\n0\r\n")));
    }

    #[test]
    fn a_head_that_hides_behind_a_body_is_judged_too() {
        let text = "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n\
                    GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n";
        assert!(matches!(verdict(text), Verdict::Refused(_)));
    }

    #[test]
    fn a_body_may_hold_what_a_head_may_not() {
        let body = "GET / HTTP/1.1\nContent-Length: 1\nContent-Length: 1\n\n";
        let text = format!("PUT / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        assert!(between_after(&text));
    }

    #[test]
    fn a_long_name_is_not_taken_for_its_beginning() {
        assert_eq!(verdict("GET / HTTP/1.1\r\nTransfer-Encoding-Of-Mine: x\r\n\r\n"), Verdict::Fine);
        assert_eq!(verdict("GET / HTTP/1.1\r\nContent-Length-Of-Mine: x\r\n\r\n"), Verdict::Fine);
    }
}
