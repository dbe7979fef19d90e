//! S-92, S-94, S-95: the bytes of HTTP itself, ranges, and the order of an upload.

use anyhow::{Context as _, Result, ensure};
use reqwest::Method;
use taffrail_tests::http::{Extra, sha256};
use taffrail_tests::images::noise;
use taffrail_tests::raw;

use super::Stage;

const REPOSITORY: &str = "library/wire";
const PUSH: &str = "pull,push";
const OCTETS: &str = "application/octet-stream";

#[test]
fn s_92_a_request_that_can_be_read_two_ways_is_refused_and_nothing_follows_it() -> Result<()> {
    let stage = Stage::set()?;
    let host = stage.scene.server.host();
    let token = stage.admin.token(&[&format!("repository:{REPOSITORY}:{PUSH}")])?;
    let location = stage.admin.begin_upload(REPOSITORY)?;
    let head = |lines: &str| {
        format!("PATCH {location} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n{lines}\r\n")
    };
    let smuggled = format!("GET /v2/ HTTP/1.1\r\nHost: {host}\r\nX-Smuggled: 1\r\n\r\n");
    let ambiguous = [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: 5, 6\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 0x5\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "X-Folded: a\r\n b\r\nContent-Length: 0\r\n",
        "Content-Length: 99999999999999999999999\r\n",
    ];
    for lines in ambiguous {
        let request = [head(lines).as_bytes(), b"0\r\n\r\n", smuggled.as_bytes()].concat();
        let answers = raw::exchange(&host, &request)?;
        let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
        ensure!(statuses.iter().all(|status| *status < 500 || *status == 501), "{lines:?}: {statuses:?}");
        // Either the connection ends with the refusal, or the body was read in the one way that counts.
        ensure!(
            statuses.len() <= 1 || statuses[0] < 400,
            "{lines:?}: more came after the refusal: {statuses:?}"
        );
        ensure!(!statuses.is_empty() || lines.contains("chunked"), "{lines:?}: no answer");
    }
    // A bare LF in trailers: an end of line for some, a part of the line for others. The body is well-formed up to there, so
    // that there is an answer; who reads on sees two more requests, or takes the first of them for trailers.
    for trailers in ["0\r\nA: b\n\r\n", "0\r\nA: b\n\n", "0\r\n\n"] {
        for begun in ["", "3\r\nabc\r\n"] {
            let head = head("Transfer-Encoding: chunked\r\n");
            let request = format!("{head}{begun}{trailers}{smuggled}{smuggled}");
            let answers = raw::exchange(&host, request.as_bytes())?;
            let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
            ensure!(statuses == [400], "{begun:?} {trailers:?}: {statuses:?}");
            let connection = answers[0].header("connection");
            ensure!(
                connection.eq_ignore_ascii_case("close"),
                "{begun:?} {trailers:?}: Connection {connection:?}"
            );
        }
    }
    let bare = format!("GET /v2/ HTTP/1.1\nHost: {host}\nConnection: close\n\n");
    for answer in raw::exchange(&host, bare.as_bytes())? {
        ensure!(answer.status < 500, "bare LF answered {}", answer.status);
    }
    for method in ["TRACE", "CONNECT", "BREW"] {
        let request = format!("{method} /v2/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        for answer in raw::exchange(&host, request.as_bytes())? {
            ensure!((400..500).contains(&answer.status), "{method} answered {}", answer.status);
        }
    }
    ensure!(stage.scene.server.client(None)?.probe("/healthz")? == 200);
    Ok(())
}

#[test]
fn s_94_ranges_never_send_more_than_the_blob() -> Result<()> {
    let stage = Stage::set()?;
    // Larger than a block, so that ranges cross one.
    let bytes = noise(rand::random(), 700_000);
    let digest = stage.admin.push_blob(REPOSITORY, &bytes)?;
    let path = format!("/v2/{REPOSITORY}/blobs/{digest}");
    let ask = |method: &Method, range: &str| {
        stage.admin.send(method, REPOSITORY, "pull", &path, &Extra::default().header("range", range))
    };
    for (range, start, end) in [
        ("bytes=0-0", 0, 1),
        ("bytes=262143-262145", 262_143, 262_146),
        ("bytes=699999-", 699_999, 700_000),
        ("bytes=-1", 699_999, 700_000),
        ("bytes=-9999999", 0, 700_000),
        ("bytes=5-9999999", 5, 700_000),
    ] {
        let answer = ask(&Method::GET, range)?.expect(&[206])?;
        ensure!(answer.body == bytes[start..end], "{range}");
        ensure!(answer.header("content-range") == format!("bytes {start}-{}/700000", end - 1), "{range}");
    }
    for range in ["bytes=700000-", "bytes=-0", "bytes=9-5", "bytes=99999999999999999999-"] {
        let answer = ask(&Method::GET, range)?;
        ensure!([416, 200].contains(&answer.status), "{range} answered {}", answer.status);
        ensure!(answer.status != 200 || answer.body == bytes);
    }
    for range in ["junk", "lines=1-2", "bytes=", "bytes=a-b", "bytes=1"] {
        let answer = ask(&Method::GET, range)?;
        ensure!([200, 400, 416].contains(&answer.status), "{range} answered {}", answer.status);
    }
    let thousand: Vec<String> =
        (0..1_000).map(|number| format!("{}-{}", number * 600, number * 600 + 9)).collect();
    let answer = ask(&Method::GET, &format!("bytes={}", thousand.join(",")))?.expect(&[206])?;
    let (_, boundary) = answer.header("content-type").split_once("boundary=").context("a boundary")?;
    let boundary = format!("--{}", boundary.trim_matches('"'));
    let parts: Vec<Vec<u8>> = split(&answer.body, boundary.as_bytes());
    let found: Vec<&[u8]> = parts
        .iter()
        .filter_map(|part| part.windows(4).position(|window| window == b"\r\n\r\n").map(|at| &part[at + 4..]))
        .collect();
    ensure!(found.len() == 1_000, "{} parts", found.len());
    for (number, part) in found.iter().enumerate() {
        ensure!(part.starts_with(&bytes[number * 600..number * 600 + 10]), "part {number}");
    }
    // Ranges over each other are joined or refused: a small request must not make a large answer.
    let same = vec!["0-699999"; 1_000].join(",");
    let answer = ask(&Method::GET, &format!("bytes={same}"))?;
    ensure!([200, 206, 416].contains(&answer.status), "answered {}", answer.status);
    ensure!(
        answer.body.len() <= bytes.len() + 4096,
        "{} bytes for a blob of {}",
        answer.body.len(),
        bytes.len()
    );
    let head = ask(&Method::HEAD, "bytes=0-9")?;
    ensure!([200, 206].contains(&head.status) && head.body.is_empty());
    Ok(())
}

#[test]
fn s_95_an_upload_takes_what_follows_and_stays_usable() -> Result<()> {
    let stage = Stage::set()?;
    let bytes = noise(rand::random(), 30_000);
    let digest = sha256(&bytes);
    let location = stage.admin.begin_upload(REPOSITORY)?;
    let patch = |body: &[u8], range: &str| {
        let extra = Extra::body(OCTETS, body).header("content-range", range);
        stage.admin.send(&Method::PATCH, REPOSITORY, PUSH, &location, &extra)
    };
    patch(&bytes[..10_000], "0-9999")?.expect(&[202])?;
    for (body, range) in [
        (&bytes[20_000..], "20000-29999"),
        (&bytes[5_000..15_000], "5000-14999"),
        (&bytes[..10_000], "0-9999"),
    ] {
        let answer = patch(body, range)?;
        ensure!(answer.status == 416, "{range} answered {}", answer.status);
        ensure!(answer.header("range") == "0-9999", "{range}: Range: {}", answer.header("range"));
    }
    let beyond = "9223372036854775808-9223372036854785807";
    for range in ["10000-19998", "19999-10000", "a-b", "10000", "-", "10000-", beyond] {
        let answer = patch(&bytes[10_000..20_000], range)?;
        ensure!([400, 416].contains(&answer.status), "{range} answered {}", answer.status);
    }
    patch(&bytes[10_000..], "10000-29999")?.expect(&[202])?;
    let joint = if location.contains('?') { '&' } else { '?' };
    let put = |query: &str| {
        let path = if query.is_empty() { location.clone() } else { format!("{location}{joint}{query}") };
        stage.admin.send(&Method::PUT, REPOSITORY, PUSH, &path, &Extra::default())
    };
    for query in [
        String::new(),
        "digest=".to_owned(),
        "digest=sha256:abc".to_owned(),
        format!("digest={digest}&digest={}", sha256(b"another")),
        format!("digest={}", sha256(b"another")),
        format!("digest=md5:{}", "a".repeat(32)),
    ] {
        let answer = put(&query)?;
        ensure!(answer.status == 400, "{query:?} answered {}", answer.status);
    }
    // After all that, the session is still there, and ends well.
    put(&format!("digest={digest}"))?.expect(&[201])?;
    ensure!(stage.admin.blob(REPOSITORY, &digest)?.expect(&[200])?.body == bytes);
    ensure!(patch(b"x", "30000-30000")?.status == 404);
    Ok(())
}

fn split(body: &[u8], boundary: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = Vec::new();
    let mut start = 0;
    let mut at = 0;
    while at + boundary.len() <= body.len() {
        if body[at..].starts_with(boundary) {
            parts.push(body[start..at].to_vec());
            at += boundary.len();
            start = at;
        } else {
            at += 1;
        }
    }
    parts
}
