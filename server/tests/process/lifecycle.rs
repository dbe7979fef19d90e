//! Start and end of the process.

use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use crate::server::{Options, Server, get, read_all, read_some, run, statuses};

/// A request whose handler waits for the rest of its body.
fn half_a_login(server: &Server) -> TcpStream {
    let mut stream = server.connect();
    stream
        .write_all(
            b"POST /service/token HTTP/1.1\r\nHost: localhost\r\nContent-Length: 46\r\nExpect: 100-continue\r\n\
              Content-Type: application/x-www-form-urlencoded\r\n\r\n",
        )
        .unwrap();
    // Said once a handler wants the body: from here on the request is under way.
    assert_eq!(statuses(&read_some(&mut stream)), [100]);
    stream.write_all(b"grant_type=password&service").unwrap();
    stream
}

#[test]
fn p_13_a_second_process_ends_and_names_the_first() {
    let first = Server::start();
    let dir = first.data_dir.to_str().unwrap();
    let began = Instant::now();
    let (code, said) =
        run(&["serve", "--listen", "127.0.0.1:0", "--data-dir", dir], &first.data_dir, &[], "");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(code, Some(1));
    assert!(said.contains(&first.pid().to_string()), "{said}");
    assert_eq!(statuses(&first.get("/readyz")), [200]);
}

#[test]
fn p_13_the_lock_of_a_killed_process_holds_nobody_up() {
    let scratch = tempfile::tempdir().unwrap();
    let data_dir = Some(scratch.path().join("data"));
    // Dropping kills it.
    drop(Server::start_with(Options { data_dir: data_dir.clone(), ..Options::default() }));
    let again = Server::start_with(Options { data_dir, ..Options::default() });
    assert_eq!(statuses(&again.get("/readyz")), [200]);
}

#[test]
fn s_113_a_data_directory_that_others_may_write_to_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let path = dir.path().to_str().unwrap();
    let (code, said) = run(&["serve", "--listen", "127.0.0.1:0", "--data-dir", path], dir.path(), &[], "");
    assert!(code == Some(1) && said.contains("chmod 700"), "{said}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was made in it");
}

#[test]
fn a_taken_address_is_named() {
    let first = Server::start();
    let dir = tempfile::tempdir().unwrap();
    let address = first.address.to_string();
    let env = [("TAFFRAIL__METRICS__LISTEN", "off")];
    let (code, said) = run(&["serve", "--listen", &address, "--data-dir", "data"], dir.path(), &env, "");
    assert!(code == Some(1) && said.contains(&address) && said.contains("in use"), "{said}");
}

#[test]
fn p_24_a_request_under_way_at_sigterm_is_answered_and_new_clients_are_refused() {
    let mut server = Server::start();
    let mut busy = half_a_login(&server);
    let mut idle = server.connect();
    idle.write_all(get("/healthz", "").as_bytes()).unwrap();
    assert_eq!(statuses(&read_some(&mut idle)), [200]);
    server.terminate();
    assert_eq!(read_all(&mut idle), "", "an idle connection ends");
    server.wait_for("new clients are refused", |server| TcpStream::connect(server.address).is_err());
    busy.write_all(b"=x&username=nobody&").unwrap();
    let answer = read_all(&mut busy);
    assert!(matches!(statuses(&answer)[..], [200..500]), "{answer}");
    let status = server.wait();
    assert!(status.success(), "{status}\n{}", server.log());
    assert!(server.log().contains("every request was answered"), "{}", server.log());
    assert!(server.log().contains("the store is closed"), "{}", server.log());
}

#[test]
fn a_request_that_outlasts_the_drain_is_cut() {
    let mut server = Server::start_with(Options::default().key("server.drain_secs", 1));
    let mut busy = half_a_login(&server);
    server.terminate();
    assert_eq!(read_all(&mut busy), "");
    let status = server.wait();
    assert!(status.success(), "{status}\n{}", server.log());
    assert!(server.log().contains("connections were cut"), "{}", server.log());
}

#[test]
fn l_16_a_second_sigterm_ends_the_process_at_once() {
    let mut server = Server::start();
    let _busy = half_a_login(&server);
    server.terminate();
    server.wait_for("it drains", |server| server.log().contains("draining"));
    server.terminate();
    let status = server.wait();
    assert_eq!(status.code(), Some(1), "a drain that ended by itself ends with 0");
    assert!(server.log().contains("told twice"), "the last lines are written all the same: {}", server.log());
}

#[test]
fn every_file_of_the_data_directory_is_private() {
    let server = Server::start();
    let mut open = vec![server.data_dir.clone()];
    let mut seen = 0;
    while let Some(path) = open.pop() {
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o077, 0, "{}", path.display());
        seen += 1;
        if metadata.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    assert!(seen > 5, "{seen}");
}

#[test]
fn a_supervisor_is_told_of_start_life_and_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut server = Server::start_with(Options {
        env: vec![("NOTIFY_SOCKET", path.display().to_string()), ("WATCHDOG_USEC", "200000".to_owned())],
        ..Options::default()
    });
    let mut heard = String::new();
    let mut wait_for = |word: &str| {
        while !heard.contains(word) {
            let mut bytes = [0; 1024];
            let count = socket.recv(&mut bytes).unwrap_or_else(|error| panic!("no {word}: {error}; {heard}"));
            heard.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
        }
    };
    wait_for("READY=1");
    wait_for("WATCHDOG=1");
    server.terminate();
    wait_for("STOPPING=1");
    assert!(server.wait().success());
}
