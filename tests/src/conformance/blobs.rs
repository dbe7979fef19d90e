//! The ways to push a blob, each held to the letter.

use reqwest::Method;

use super::data::DataSet;
use super::wire::{Ask, Check, Length, Miss, Reply, Wire, broken, join, unsupported, with_query};

const OCTETS: &str = "application/octet-stream";

/// Smallest piece of a chunked upload, unless the registry wants more.
pub(super) const CHUNK_BYTES_MIN: usize = 1024;

/// A way to push a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    PostPut,
    PostOnly,
    Stream,
    Chunked,
}

impl Way {
    /// In the order in which the program prefers them.
    pub(super) const ALL: [Self; 4] = [Self::PostPut, Self::PostOnly, Self::Stream, Self::Chunked];
}

/// How a push departs from the plain one.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Twist {
    /// The bytes do not fit the digest: the registry has to say 400.
    pub(super) bad_digest: bool,
    /// The last chunk comes with the PUT.
    pub(super) put_last_chunk: bool,
    /// Before each chunk a wrong one is sent, which has to be answered with 416.
    pub(super) out_of_order: bool,
}

/// One push.
pub(super) struct Push<'a> {
    pub(super) wire: &'a mut Wire,
    pub(super) repository: &'a str,
    pub(super) digest: &'a str,
    pub(super) content: &'a [u8],
    pub(super) require_digest: bool,
    pub(super) twist: Twist,
    /// The chunk size that the registry asked for, if it did.
    pub(super) chunk_bytes_min: &'a mut usize,
}

impl Push<'_> {
    pub(super) fn run(&mut self, way: Way) -> Check {
        match way {
            Way::PostPut => self.post_put(),
            Way::PostOnly => self.post_only(),
            Way::Stream => self.stream(),
            Way::Chunked => self.chunked(),
        }
    }

    /// Mounts the blob; `from` is empty for a mount from wherever it is.
    pub(super) fn mount(&mut self, from: &str) -> Check {
        let mut path = with_query(&self.uploads(), "mount", self.digest);
        if !from.is_empty() {
            path = with_query(&path, "from", from);
        }
        let reply = self.wire.send(&Ask::new(Method::POST, path))?;
        reply.status(&[201, 202])?;
        let location = reply.location()?;
        if reply.status == 201 {
            reply.digest_is(self.digest, self.require_digest)?;
            return self.stands_at(&location);
        }
        let put = self.put(&location, self.content)?;
        put.status(&[201])?;
        put.digest_is(self.digest, self.require_digest)?;
        self.stands_at(&put.location()?)?;
        unsupported("the mount was answered with 202, an upload")
    }

    /// Opens a session and cancels it.
    pub(super) fn cancel(&mut self) -> Check {
        let location = self.open()?;
        self.wire.send(&Ask::new(Method::DELETE, location))?.status(&[204])
    }

    fn uploads(&self) -> String {
        format!("/v2/{}/blobs/uploads/", self.repository)
    }

    fn open(&mut self) -> Result<String, Vec<Miss>> {
        let reply = self.wire.send(&Ask::new(Method::POST, self.uploads()))?;
        reply.status(&[202])?;
        if let Ok(bytes) = reply.header("oci-chunk-min-length").parse::<usize>() {
            *self.chunk_bytes_min = bytes.max(*self.chunk_bytes_min);
        }
        reply.location()
    }

    fn put(&mut self, location: &str, content: &[u8]) -> Result<Reply, Vec<Miss>> {
        let path = with_query(location, "digest", self.digest);
        self.wire.send(&Ask::new(Method::PUT, path).body(OCTETS, content, Length::Known))
    }

    /// Judges the answer that ends a push.
    fn ended(&mut self, reply: &Reply) -> Check {
        if self.twist.bad_digest {
            return reply.status(&[400]);
        }
        reply.status(&[201])?;
        reply.digest_is(self.digest, self.require_digest)?;
        self.stands_at(&reply.location()?)
    }

    fn stands_at(&mut self, location: &str) -> Check {
        let reply = self.wire.send(&Ask::new(Method::GET, location))?;
        join([reply.status(&[200]), reply.body_is(self.content)])
    }

    fn post_put(&mut self) -> Check {
        let location = self.open()?;
        let reply = self.put(&location, self.content)?;
        self.ended(&reply)
    }

    fn post_only(&mut self) -> Check {
        let path = with_query(&self.uploads(), "digest", self.digest);
        let reply =
            self.wire.send(&Ask::new(Method::POST, path).body(OCTETS, self.content, Length::Known))?;
        if reply.status != 202 {
            return self.ended(&reply);
        }
        let location = reply.location()?;
        let reply = self.put(&location, self.content)?;
        reply.status(&[if self.twist.bad_digest { 400 } else { 201 }])?;
        unsupported("the POST with a body was answered with 202, an upload")
    }

    fn stream(&mut self) -> Check {
        let location = self.open()?;
        let ask = Ask::new(Method::PATCH, location).body(OCTETS, self.content, Length::Unknown);
        let reply = self.wire.send(&ask)?;
        reply.status(&[202])?;
        let location = reply.location()?;
        let reply = self.put(&location, &[])?;
        self.ended(&reply)
    }

    fn chunked(&mut self) -> Check {
        let mut location = self.open()?;
        let (content, all) = (self.content, self.content.len());
        let chunk = (all / 3 + 1).max(*self.chunk_bytes_min).max(CHUNK_BYTES_MIN).min(all);
        let mut sent = 0;
        while sent < all {
            if self.twist.out_of_order {
                location = self.wrong_chunk(&location, sent, chunk)?;
            }
            let end = (sent + chunk).min(all);
            let last = self.twist.put_last_chunk && end == all;
            let path = if last { with_query(&location, "digest", self.digest) } else { location.clone() };
            let method = if last { Method::PUT } else { Method::PATCH };
            let reply = self.wire.send(&chunk_of(method, path, content, sent, end))?;
            if last {
                return self.ended(&reply);
            }
            reply.status(&[202])?;
            location = reply.location()?;
            sent = end;
        }
        let reply = self.put(&location, &[])?;
        self.ended(&reply)
    }

    /// Sends a chunk that does not follow what was sent, and finds out where the upload stands.
    fn wrong_chunk(&mut self, location: &str, sent: usize, chunk: usize) -> Result<String, Vec<Miss>> {
        let all = self.content.len();
        let start = if sent + chunk >= all { 0 } else { sent + chunk };
        let end = (start + chunk).min(all);
        let put = self.twist.put_last_chunk && end == all;
        let path = if put { with_query(location, "digest", self.digest) } else { location.to_owned() };
        let method = if put { Method::PUT } else { Method::PATCH };
        let refused = self.wire.send(&chunk_of(method, path.clone(), self.content, start, end))?;
        refused.status(&[416])?;
        let state = self.wire.send(&Ask::new(Method::GET, path))?;
        state.status(&[204])?;
        let Some(Ok(reached)) = state.header("range").strip_prefix("0-").map(str::parse::<usize>) else {
            return broken(format!("{}: Range is {:?}", state.asked, state.header("range")));
        };
        if sent > 0 && reached != sent - 1 {
            return broken(format!("{}: the upload stands at {reached}, not at {}", state.asked, sent - 1));
        }
        // Each answer may move the upload; the newest place counts.
        let moved = [state.header("location"), refused.header("location"), location];
        Ok(moved.into_iter().find(|place| !place.is_empty()).unwrap_or(location).to_owned())
    }
}

fn chunk_of<'a>(method: Method, path: String, content: &'a [u8], start: usize, end: usize) -> Ask<'a> {
    Ask::new(method, path).header("content-range", format!("{start}-{}", end - 1)).body(
        OCTETS,
        &content[start..end],
        Length::Known,
    )
}

/// A blob's bytes in a set.
pub(super) fn content<'a>(set: &'a DataSet, digest: &str) -> &'a [u8] {
    set.blobs.get(digest).map(Vec::as_slice).unwrap_or_default()
}
