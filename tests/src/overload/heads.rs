//! L-06: heads at their bounds and one past them.

use std::net::SocketAddr;

use anyhow::Result;
use taffrail_tests::server::Options;

use crate::client;
use crate::plan::Plan;
use crate::row::Row;
use crate::site::Site;

/// The bounds of an unconfigured server (docs/operations/configuration.md, `limits`).
const LINE_BYTES_MAX: usize = 8 << 10;
const HEADER_BYTES_MAX: usize = 32 << 10;
const FIELDS_MAX: usize = 100;
/// `: ` and the line end, which count with each field.
const FIELD_OVERHEAD: usize = 4;

/// Makes a request with so many of something.
type Make = fn(SocketAddr, usize) -> String;

pub(crate) fn run(plan: &Plan) -> Result<Vec<Row>> {
    let site = Site::start(plan, Options::default())?;
    let host = site.host()?;
    let mut rows = Vec::new();
    let kinds: [(&str, usize, u16, Make); 3] = [
        ("a request line of {} bytes", LINE_BYTES_MAX, 414, of_line),
        ("header fields of {} bytes", HEADER_BYTES_MAX, 431, of_header),
        ("{} header fields", FIELDS_MAX, 431, of_fields),
    ];
    for (what, most, refusal, make) in kinds {
        for (size, due) in [(most - 1, 200), (most, 200), (most + 1, refusal), (most * 2, refusal)] {
            let request = make(host, size);
            let (status, alive) = plan.runtime.block_on(ask_twice(host, &request))?;
            rows.push(Row::held(
                "L-06",
                what.replace("{}", &size.to_string()),
                due.to_string(),
                format!("{status}, {alive}"),
                status == due,
            ));
        }
    }
    Ok(rows)
}

/// The status, and what then becomes of the connection.
async fn ask_twice(host: SocketAddr, request: &str) -> Result<(u16, &'static str)> {
    let mut stream = client::dial(host, client::loopback(0)).await?;
    let begun = client::ask(&mut stream, request.as_bytes()).await?;
    if begun.closes() {
        return Ok((begun.status, "says that it closes"));
    }
    let next = client::ask(&mut stream, client::head("GET", "/healthz", host, "").as_bytes()).await?;
    anyhow::ensure!(next.status == 200, "the next request was answered {}", next.status);
    Ok((begun.status, "the connection lives"))
}

fn of_line(host: SocketAddr, bytes: usize) -> String {
    let fixed = "GET /healthz? HTTP/1.1\r\n".len();
    client::head("GET", &format!("/healthz?{}", "a".repeat(bytes - fixed)), host, "")
}

fn of_header(host: SocketAddr, bytes: usize) -> String {
    let fixed = "Host".len() + host.to_string().len() + "X-A".len() + 2 * FIELD_OVERHEAD;
    client::head("GET", "/healthz", host, &format!("X-A: {}\r\n", "v".repeat(bytes - fixed)))
}

fn of_fields(host: SocketAddr, count: usize) -> String {
    client::head("GET", "/healthz", host, &"X-A: v\r\n".repeat(count - 1))
}
