//! Request smuggling (S-92) against the real listener.

use std::io::Write as _;

use crate::server::{Server, get, read_all, statuses};

/// A request that must not be answered when it hides behind a refused one.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n";

#[test]
fn s_92_a_head_with_two_readings_is_answered_400_and_nothing_behind_it() {
    let server = Server::start();
    for lines in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5, 5\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length: 99999999999999999999999\r\n",
        "Content-Length : 5\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: identity, chunked\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: \"chunked\"\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding:\u{b}chunked\r\n",
        "Transfer-Encoding:\r\n chunked\r\n",
        "X-Folded: a\r\n b\r\n",
        " Leading: a\r\n",
        "X-Bare: a\nContent-Length: 5\r\n",
        "X-Bare: a\rContent-Length: 5\r\n",
        "X-Nul: a\0b\r\n",
        "No colon\r\n",
        ": no name\r\n",
    ] {
        let request = format!("POST /healthz HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n0\r\n\r\n{SMUGGLED}");
        let answers = server.exchange(&request);
        assert_eq!(statuses(&answers), [400], "{lines:?}: {answers}");
    }
    for whole in [
        "GET / HTTP/1.1\nHost: localhost\n\n",
        "GET / HTTP/1.1\r\nHost: localhost\r\n\n",
        "GET  / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /\u{1} HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET / HTTP/1.2\r\nHost: localhost\r\n\r\n",
        "GET / HTTP/1.1 \r\nHost: localhost\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        let answers = server.exchange(format!("{whole}{SMUGGLED}"));
        assert_eq!(statuses(&answers), [400], "{whole:?}: {answers}");
    }
    assert!(!server.log().contains("/smuggled"), "{}", server.log());
}

#[test]
fn s_92_what_has_one_reading_is_read_that_way() {
    let server = Server::start();
    let last = get("/healthz", "Connection: close\r\n");
    for (first, status) in [
        ("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        ("\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        // The token service reads its body.
        ("POST /service/token HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nGET /", 400),
        (
            "POST /service/token HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nGET /\r\n0\r\nX: y\r\n\r\n",
            400,
        ),
    ] {
        let answers = server.exchange(format!("{first}{last}"));
        assert_eq!(statuses(&answers), [status, 200], "{first:?}: {answers}");
    }
}

#[test]
fn an_answer_before_the_end_of_a_body_says_that_the_connection_closes() {
    let server = Server::start();
    let first = "GET /absent HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nGET /\r\n0\r\n\r\n";
    let answers = server.exchange(format!("{first}{}", get("/healthz", "Connection: close\r\n")));
    assert_eq!(statuses(&answers), [404], "{answers}");
    assert!(answers.to_lowercase().contains("connection: close\r\n"), "{answers}");
}

#[test]
fn s_92_broken_chunks_end_the_connection_and_nothing_behind_them_is_read() {
    let server = Server::start();
    for chunks in [
        "zz\r\n".to_owned(),
        "-5\r\nhello\r\n0\r\n\r\n".to_owned(),
        "5\nhello\r\n0\r\n\r\n".to_owned(),
        "5\r\nhello0\r\n\r\n".to_owned(),
        "fffffffffffffffff\r\n".to_owned(),
        format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(64 * 1024)),
    ] {
        let request = format!(
            "POST /service/token HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\
             Content-Type: application/x-www-form-urlencoded\r\n\r\n{chunks}{SMUGGLED}"
        );
        let answers = server.exchange(&request);
        let statuses = statuses(&answers);
        assert!(
            statuses.len() <= 1 && statuses.iter().all(|status| *status < 500),
            "{chunks:.20?}: {answers}"
        );
    }
    assert!(!server.log().contains("/smuggled"), "{}", server.log());
}

#[test]
fn a_refusal_is_read_by_a_client_that_is_still_sending() {
    let server = Server::start();
    let body = vec![b'x'; 8 * 1024 * 1024];
    let head = format!("PUT /absent HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
    let mut stream = server.connect();
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&body).unwrap();
    let answer = read_all(&mut stream);
    assert_eq!(statuses(&answer), [413], "{answer}");
}
