//! L-07: bodies at their bounds and one past them, announced and not.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use taffrail_tests::http::sha256;
use taffrail_tests::images::noise;
use taffrail_tests::server::{ADMIN_PASSWORD, Options};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::client;
use crate::plan::Plan;
use crate::row::Row;
use crate::site::Site;

const REPOSITORY: &str = "library/bodies";

/// The bounds of an unconfigured server (docs/operations/configuration.md, `limits`), and one that we choose.
const MANIFEST_BYTES_MAX: usize = 4 << 20;
const JSON_BYTES_MAX: usize = 1 << 20;
const TOKEN_FORM_BYTES_MAX: usize = 64 << 10;
const BLOB_BYTES_MAX: usize = 3 << 20;

/// Piece of a body that is sent without its length.
const CHUNK_BYTES: usize = 32 << 10;

/// A request whose body is bounded.
struct Kind {
    what: &'static str,
    method: &'static str,
    path: String,
    lines: String,
    bytes_max: usize,
    /// The status of a body that is as long as it may be.
    due: u16,
}

/// How the length of a body is told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Length {
    Announced,
    Untold,
}

pub(crate) fn run(plan: &Plan) -> Result<Vec<Row>> {
    let site = Site::start(plan, Options::default().key("uploads", "blob_bytes_max", BLOB_BYTES_MAX))?;
    let host = site.host()?;
    let token = site.token(REPOSITORY)?;
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("admin:{ADMIN_PASSWORD}"));
    let mut rows = Vec::new();
    for length in [Length::Announced, Length::Untold] {
        for past in [0, 1] {
            for kind in kinds(&site, &token, &basic, past)? {
                let body = noise(7, kind.bytes_max + past);
                let due = if past == 0 { kind.due } else { 413 };
                let (status, after) = plan.runtime.block_on(exchange(host, &kind, &body, length))?;
                let told = if length == Length::Announced { "announced" } else { "untold" };
                rows.push(Row::held(
                    "L-07",
                    format!("{}, {} bytes, {told}", kind.what, body.len()),
                    format!("{due}, then a connection that lives or says that it closes"),
                    format!(
                        "{status}, {}",
                        after.as_ref().map_or_else(|error| format!("{error:#}"), |word| (*word).to_owned())
                    ),
                    status == due && after.is_ok(),
                ));
            }
        }
    }
    Ok(rows)
}

fn kinds(site: &Site, token: &str, basic: &str, past: usize) -> Result<Vec<Kind>> {
    let octets = format!("{token}Content-Type: application/octet-stream\r\n");
    let json = "Content-Type: application/json\r\n";
    let digest = sha256(&noise(7, BLOB_BYTES_MAX + past));
    let put = site.admin.begin_upload(REPOSITORY)?;
    let joint = if put.contains('?') { '&' } else { '?' };
    Ok(vec![
        Kind {
            what: "PUT of a manifest (that is none)",
            method: "PUT",
            path: format!("/v2/{REPOSITORY}/manifests/large"),
            lines: format!("{token}Content-Type: application/vnd.oci.image.manifest.v1+json\r\n"),
            bytes_max: MANIFEST_BYTES_MAX,
            due: 400,
        },
        Kind {
            what: "PATCH of an upload",
            method: "PATCH",
            path: site.admin.begin_upload(REPOSITORY)?,
            lines: octets.clone(),
            bytes_max: BLOB_BYTES_MAX,
            due: 202,
        },
        Kind {
            what: "PUT of an upload",
            method: "PUT",
            path: format!("{put}{joint}digest={digest}"),
            lines: octets.clone(),
            bytes_max: BLOB_BYTES_MAX,
            due: 201,
        },
        Kind {
            what: "POST of a whole blob",
            method: "POST",
            path: format!("/v2/{REPOSITORY}/blobs/uploads/?digest={digest}"),
            lines: octets,
            bytes_max: BLOB_BYTES_MAX,
            due: 201,
        },
        Kind {
            what: "POST of a project (that is none)",
            method: "POST",
            path: "/api/v2.0/projects".to_owned(),
            lines: format!("Authorization: Basic {basic}\r\n{json}"),
            bytes_max: JSON_BYTES_MAX,
            due: 400,
        },
        Kind {
            what: "POST of a token form (that is none)",
            method: "POST",
            path: "/service/token".to_owned(),
            lines: "Content-Type: application/x-www-form-urlencoded\r\n".to_owned(),
            bytes_max: TOKEN_FORM_BYTES_MAX,
            due: 400,
        },
    ])
}

/// The status, and what becomes of the connection, or why that is not as it should be.
async fn exchange(
    host: SocketAddr,
    kind: &Kind,
    body: &[u8],
    length: Length,
) -> Result<(u16, Result<&'static str>)> {
    let mut stream = client::dial(host, client::loopback(0)).await?;
    let lines = match length {
        Length::Announced => format!("{}Content-Length: {}\r\n", kind.lines, body.len()),
        Length::Untold => format!("{}Transfer-Encoding: chunked\r\n", kind.lines),
    };
    stream.write_all(client::head(kind.method, &kind.path, host, &lines).as_bytes()).await?;
    // A server that refuses may stop reading in the middle, if its answer says so.
    let sent = send(&mut stream, body, length).await;
    let begun =
        client::answer(&mut stream, false).await.with_context(|| format!("{} ({sent:?})", kind.what))?;
    client::finish(&mut stream, &begun).await?;
    if begun.closes() {
        let mut end = Vec::new();
        let ended = stream.read_to_end(&mut end).await;
        let cleanly = ended.context("it was reset").map(|_| "closes, as it says");
        return Ok((begun.status, cleanly));
    }
    let next = client::ask(&mut stream, client::head("GET", "/healthz", host, "").as_bytes()).await;
    let next = next.context("it ended without a word").and_then(|next| {
        anyhow::ensure!(next.status == 200, "the next request was answered {}", next.status);
        Ok("the connection lives")
    });
    Ok((begun.status, next))
}

async fn send(stream: &mut TcpStream, body: &[u8], length: Length) -> std::io::Result<()> {
    if length == Length::Announced {
        return stream.write_all(body).await;
    }
    for chunk in body.chunks(CHUNK_BYTES) {
        stream.write_all(format!("{:x}\r\n", chunk.len()).as_bytes()).await?;
        stream.write_all(chunk).await?;
        stream.write_all(b"\r\n").await?;
    }
    stream.write_all(b"0\r\n\r\n").await
}
