//! The server as an operator meets it: first start, signals, crashes in the middle of things, a full disk.

use std::fs::Permissions;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use reqwest::Method;
use serde_json::json;
use taffrail_tests::binary;
use taffrail_tests::http::{Extra, sha256};
use taffrail_tests::images::{Image, noise};
use taffrail_tests::loop_disk::{self, LoopDisk};
use taffrail_tests::scene::{self, Scene};
use taffrail_tests::server::{Options, Server, Tls};
use taffrail_tests::tools::{self, Tool, say};

const OCTETS: &str = "application/octet-stream";
const PUSH: &str = "pull,push";

/// Longer than a server needs to find out that it may not start.
const END_DEADLINE: Duration = Duration::from_secs(30);

#[test]
fn the_first_start_draws_a_password_and_keeps_it_for_the_owner_alone_and_out_of_the_log() -> Result<()> {
    let mut server = Server::start_with(Options { admin_password: None, ..Options::default() })?;
    let file = server.data_dir().join("initial-admin-password");
    ensure!(std::fs::metadata(&file)?.permissions().mode() & 0o777 == 0o600);
    let password = std::fs::read_to_string(&file)?.trim().to_owned();
    ensure!(password.len() >= 16, "a password that can be guessed");
    // Standard output is a file here, as it is the journal under systemd: it gets the place and not the password.
    ensure!(server.log().matches("initial-admin-password").count() == 1, "{}", server.log_tail());
    ensure!(!server.log().contains(&password), "{}", server.log_tail());
    let admin = server.client(Some(("admin", &password)))?;
    admin.api(&Method::GET, "/users/current", None)?.expect(&[200])?;

    ensure!(server.terminate()?.success());
    server.restart()?;
    ensure!(server.log().matches("initial-admin-password").count() == 1, "printed again");
    ensure!(!server.log().contains(&password), "{}", server.log_tail());
    Ok(())
}

#[test]
fn a_manifest_of_another_media_type_is_taken_where_the_configuration_names_it() -> Result<()> {
    let media_type = "application/vnd.oci.artifact.manifest.v1+json";
    let layer = noise(1000, 7);
    let document = |blob: &str| {
        let blob = json!({"mediaType": OCTETS, "digest": blob, "size": layer.len()});
        json!({"mediaType": media_type, "artifactType": "application/x", "blobs": [blob]}).to_string()
    };
    let put = |options: Options| {
        let server = Server::start_with(options)?;
        let admin = server.admin()?;
        let blob = admin.push_blob("library/artifact", &layer)?;
        let extra = Extra::body(media_type, document(&blob));
        admin.send(&Method::PUT, "library/artifact", PUSH, "/v2/library/artifact/manifests/v1", &extra)
    };
    let refused = put(Options::default())?.expect(&[400])?;
    ensure!(refused.text().contains("limits.extra_manifest_types"), "{}", refused.text());
    put(Options::default().key("limits", "extra_manifest_types", media_type))?.expect(&[201])?;
    Ok(())
}

/// A restore that did not keep modes once left the database, with its password hashes, to everybody on the machine.
#[test]
fn a_data_directory_that_a_restore_left_open_is_closed_with_a_warning() -> Result<()> {
    let mut server = Server::start()?;
    let (folder, file) = (server.data_dir().join("catalog"), server.data_dir().join("catalog/taffrail.db"));
    ensure!(server.terminate()?.success());
    ensure!(!server.log().contains("open to others"), "{}", server.log_tail());
    std::fs::set_permissions(&folder, Permissions::from_mode(0o755))?;
    std::fs::set_permissions(&file, Permissions::from_mode(0o644))?;
    server.restart()?;
    let mode = |path: &Path| anyhow::Ok(std::fs::metadata(path)?.permissions().mode() & 0o777);
    ensure!(mode(&folder)? == 0o700);
    for entry in std::fs::read_dir(&folder)? {
        let path = entry?.path();
        ensure!(mode(&path)? == 0o600, "{}", path.display());
    }
    let log = server.log();
    let warned = |path: &Path| {
        log.lines().any(|line| line.contains("open to others") && line.contains(&*path.to_string_lossy()))
    };
    ensure!(warned(&folder) && warned(&file), "{}", server.log_tail());
    Ok(())
}

#[test]
fn a_given_first_password_is_neither_printed_nor_kept() -> Result<()> {
    let server = Server::start()?;
    ensure!(!server.data_dir().join("initial-admin-password").exists());
    ensure!(!server.log().contains(taffrail_tests::server::ADMIN_PASSWORD));
    server.admin()?.api(&Method::GET, "/users/current", None)?.expect(&[200])?;
    let wrong = server.client(Some(("admin", "Wrong-Password-1")))?;
    wrong.api(&Method::GET, "/users/current", None)?.expect(&[401])?;
    Ok(())
}

#[test]
fn a_second_server_on_the_same_data_ends_and_says_who_holds_it() -> Result<()> {
    let first = Server::start()?;
    let data_dir = Some(first.data_dir().to_path_buf());
    let Err(error) = Server::start_with(Options { data_dir, ..Options::default() }) else {
        anyhow::bail!("two servers run on one store");
    };
    let said = format!("{error:#}");
    let pid = first.pid().context("a running server")?.to_string();
    ensure!(said.contains(&pid), "the holder, {pid}, is not named: {said}");
    ensure!(first.client(None)?.probe("/healthz")? == 200);
    Ok(())
}

#[test]
fn sigterm_lets_a_push_that_is_under_way_finish() -> Result<()> {
    let mut server = Server::start()?;
    let admin = server.admin()?;
    let bytes = noise(3, 300_000);
    let digest = sha256(&bytes);
    let location = admin.begin_upload("library/drain")?;
    let token = admin.token(&["repository:library/drain:pull,push"])?;
    let joint = if location.contains('?') { '&' } else { '?' };

    let mut socket = TcpStream::connect(server.host())?;
    socket.set_read_timeout(Some(END_DEADLINE))?;
    write!(
        socket,
        "PUT {location}{joint}digest={digest} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: {OCTETS}\r\nContent-Length: {}\r\nExpect: 100-continue\r\n\r\n",
        server.host(),
        bytes.len()
    )?;
    // This answer shows that the request is under way.
    ensure!(read_some(&mut socket)?.starts_with("HTTP/1.1 100"));
    let (half, rest) = bytes.split_at(bytes.len() / 2);
    socket.write_all(half)?;

    let probe = server.client(None)?;
    let ended = std::thread::scope(|scope| {
        let ending = scope.spawn(|| server.terminate());
        wait_until("the server drains", || Ok(!matches!(probe.probe("/readyz"), Ok(200))))?;
        socket.write_all(rest)?;
        let answer = read_some(&mut socket)?;
        ensure!(answer.starts_with("HTTP/1.1 201"), "{answer}");
        drop(socket);
        ending.join().map_err(|_| anyhow::anyhow!("the wait panicked"))?
    })?;
    ensure!(ended.success(), "the server ended with {ended}\n{}", server.log_tail());
    server.restart()?;
    ensure!(server.admin()?.blob("library/drain", &digest)?.expect(&[200])?.body == bytes);
    Ok(())
}

#[test]
fn an_upload_goes_on_after_kill_9_where_it_was_acknowledged() -> Result<()> {
    let mut server = Server::start()?;
    let admin = server.admin()?;
    let bytes = noise(5, 7_000_000);
    let location = admin.begin_upload("library/resumed")?;
    let first = Extra::body(OCTETS, &bytes[..4_000_000]).header("content-range", "0-3999999");
    let answer = admin.send(&Method::PATCH, "library/resumed", PUSH, &location, &first)?.expect(&[202])?;
    ensure!(answer.header("range") == "0-3999999", "Range: {}", answer.header("range"));
    let location = admin.location(&answer)?;

    server.kill9()?;
    server.restart()?;
    let state =
        admin.send(&Method::GET, "library/resumed", PUSH, &location, &Extra::default())?.expect(&[204])?;
    ensure!(state.header("range") == "0-3999999", "Range: {}", state.header("range"));
    let rest = Extra::body(OCTETS, &bytes[4_000_000..]).header("content-range", "4000000-6999999");
    let answer = admin.send(&Method::PATCH, "library/resumed", PUSH, &location, &rest)?.expect(&[202])?;
    let digest = sha256(&bytes);
    let put = with_digest(&admin.location(&answer)?, &digest);
    admin.send(&Method::PUT, "library/resumed", PUSH, &put, &Extra::default())?.expect(&[201])?;
    ensure!(admin.blob("library/resumed", &digest)?.expect(&[200])?.body == bytes);
    Ok(())
}

#[test]
fn a_client_that_goes_away_in_mid_upload_finds_its_session_where_it_left_it() -> Result<()> {
    let server = Server::start()?;
    let admin = server.admin()?;
    let bytes = noise(6, 5_000_000);
    let location = admin.begin_upload("library/cut")?;
    let token = admin.token(&["repository:library/cut:pull,push"])?;
    let mut socket = TcpStream::connect(server.host())?;
    write!(
        socket,
        "PATCH {location} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\nContent-Type: {OCTETS}\r\n\
         Content-Length: {}\r\n\r\n",
        server.host(),
        bytes.len()
    )?;
    socket.write_all(&bytes[..3_000_000])?;
    drop(socket);

    // Some prefix was taken; where it ends is the server's to say. Until it has noticed that the client is gone, it
    // takes no other writer.
    let digest = sha256(&bytes);
    let mut location = location;
    wait_until("the session takes the rest", || {
        let state =
            admin.send(&Method::GET, "library/cut", PUSH, &location, &Extra::default())?.expect(&[204])?;
        let reached = state.header("range").strip_prefix("0-").and_then(|last| last.parse::<usize>().ok());
        let next = reached.map(|last| if last == 0 { 0 } else { last + 1 }).context("a range")?;
        ensure!(next <= 3_000_000, "more than was sent: {next}");
        let rest = Extra::body(OCTETS, &bytes[next..]).header("content-range", format!("{next}-4999999"));
        let answer = admin.send(&Method::PATCH, "library/cut", PUSH, &location, &rest)?;
        if answer.status == 202 {
            location = admin.location(&answer)?;
        }
        ensure!([202, 409, 416].contains(&answer.status), "answered {}: {}", answer.status, answer.text());
        Ok(answer.status == 202)
    })?;
    let put = with_digest(&location, &digest);
    admin.send(&Method::PUT, "library/cut", PUSH, &put, &Extra::default())?.expect(&[201])?;
    ensure!(admin.blob("library/cut", &digest)?.expect(&[200])?.body == bytes);
    Ok(())
}

/// A client that goes on using a connection which the server closed without a word loses its next request.
#[test]
fn a_refusal_leaves_the_connection_open_or_says_that_it_closes() -> Result<()> {
    let server = Server::start()?;
    let admin = server.admin()?;
    let host = server.host();
    let repository = "library/refusals";
    let token = admin.token(&[&format!("repository:{repository}:pull,push")])?;
    let location = admin.begin_upload(repository)?;
    let bearer = format!("Authorization: Bearer {token}\r\n");
    let manifest = format!("/v2/{repository}/manifests/one");
    let unknown = format!("/v2/{repository}/blobs/uploads/00000000-0000-0000-0000-000000000000");
    let (small, large) = (1_000, 300_000);
    let json = "Content-Type: application/json\r\n";
    let refused = [
        ("PATCH", location.as_str(), format!("{bearer}Content-Range: 500-1499\r\n"), small),
        ("PATCH", location.as_str(), format!("{bearer}Content-Range: 500-300499\r\n"), large),
        ("PATCH", location.as_str(), String::new(), small),
        ("PATCH", location.as_str(), String::new(), large),
        ("PATCH", unknown.as_str(), bearer.clone(), small),
        ("PATCH", unknown.as_str(), bearer.clone(), large),
        ("PUT", manifest.as_str(), format!("{bearer}{json}"), small),
        ("PUT", manifest.as_str(), format!("{bearer}{json}"), large),
        ("POST", "/api/v2.0/projects", json.to_owned(), small),
        ("POST", "/no/such/path", String::new(), large),
    ];
    for (method, path, lines, bytes) in refused {
        let mut socket = TcpStream::connect(&host)?;
        socket.set_read_timeout(Some(END_DEADLINE))?;
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {bytes}\r\n{lines}\r\n");
        let what = format!("{method} {path} with {bytes} bytes");
        // A server that refuses before it has read all may close in the middle of this, if it says so.
        let sent = socket.write_all(head.as_bytes()).and_then(|()| socket.write_all(&noise(9, bytes)));
        let answer = read_some(&mut socket)?.to_lowercase();
        ensure!(answer.starts_with("http/1.1 4"), "{what}: {answer}");
        if answer.contains("connection: close") {
            continue;
        }
        sent.with_context(|| format!("{what}: closed without a word"))?;
        write!(socket, "GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n")?;
        let next = loop {
            let text = read_some(&mut socket).with_context(|| format!("{what}: closed without a word"))?;
            ensure!(!text.is_empty(), "{what}: closed without a word; it was answered\n{answer}");
            if let Some(at) = text.find("HTTP/1.1 ") {
                break text[at..].to_owned();
            }
        };
        ensure!(next.starts_with("HTTP/1.1 200"), "{what}: then {next}");
    }
    Ok(())
}

#[test]
fn a_full_disk_refuses_pushes_serves_pulls_and_heals() -> Result<()> {
    if !tools::present(&loop_disk::NEEDS)? {
        return Ok(());
    }
    let disk = LoopDisk::make(96)?;
    let data_dir = Some(disk.mount_point().join("data"));
    let mut server = Server::start_with(
        Options { data_dir, ..Options::default() }.key("storage", "segment_bytes", 4 << 20).key(
            "storage",
            "reserve_bytes",
            8 << 20,
        ),
    )?;
    let admin = server.admin()?;
    let kept = Image::unique(&[2_000, 3_000_000])?;
    kept.push(&admin, "library/full", "kept")?;

    // Somebody else fills the disk, as it happens: all but what the server has set aside.
    let ballast = disk.mount_point().join("ballast");
    fill(&ballast)?;
    let mut refused = None;
    for number in 0..40 {
        let location = match admin.begin_upload("library/full") {
            Ok(location) => location,
            Err(error) => {
                refused = Some(format!("{error:#}"));
                break;
            }
        };
        let bytes = noise(1_000 + number, 2_500_000);
        let put = with_digest(&location, &sha256(&bytes));
        let answer =
            admin.send(&Method::PUT, "library/full", PUSH, &put, &Extra::body(OCTETS, bytes.clone()))?;
        match answer.status {
            201 => {}
            507 => {
                refused = Some("507".to_owned());
                break;
            }
            other => anyhow::bail!("a full disk was answered {other}: {}", answer.text()),
        }
    }
    let refused = refused.context("100 MB went onto a disk of 96 MiB")?;
    ensure!(refused.contains("507"), "refused with {refused}");

    // Reads go on, deletes work, and nothing that was acknowledged is harmed.
    for digest in kept.blobs() {
        ensure!(sha256(&admin.blob("library/full", &digest)?.expect(&[200])?.body) == digest);
    }
    ensure!(admin.manifest("library/full", "kept")?.expect(&[200])?.body == kept.manifest);

    std::fs::remove_file(&ballast)?;
    let after = Image::unique(&[1_500_000])?;
    wait_until("the server takes pushes again", || Ok(after.push(&admin, "library/full", "after").is_ok()))?;

    // And a start finds all of it.
    server.kill9()?;
    server.restart()?;
    for (image, tag) in [(&kept, "kept"), (&after, "after")] {
        ensure!(admin.manifest("library/full", tag)?.expect(&[200])?.body == image.manifest);
    }
    drop(server);
    Ok(())
}

#[test]
fn a_configuration_with_an_unknown_key_is_refused_by_name() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("taffrail.yaml");
    std::fs::write(&file, "tls:\n  mood: off\n")?;
    let output = Command::new(binary::server()?).args(["config", "check", "--config"]).arg(&file).output()?;
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    ensure!(!output.status.success());
    ensure!(said.contains("tls.mood") && said.contains("tls.mode"), "{said}");
    Ok(())
}

#[test]
fn plain_http_for_other_machines_needs_a_word() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let output = Command::new(binary::server()?)
        .args(["serve", "--listen", "0.0.0.0:0", "--data-dir"])
        .arg(dir.path().join("data"))
        .output()?;
    ensure!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(said.contains("insecure_http"), "{said}");
    Ok(())
}

#[test]
fn a_server_makes_its_own_certificate_and_keeps_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data_dir = Some(dir.path().join("data"));
    // The harness asks over plain HTTP, so that this server never looks ready to it; it is asked by hand.
    let mut served = Vec::new();
    for _ in 0..2 {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut child = Command::new(binary::server()?)
            .args(["serve", "--listen", &format!("127.0.0.1:{port}"), "--data-dir"])
            .arg(data_dir.as_deref().context("a folder")?)
            .env("TAFFRAIL__TLS__MODE", "self_signed")
            .env("TAFFRAIL__METRICS__LISTEN", "off")
            .env("TAFFRAIL_ADMIN_PASSWORD", taffrail_tests::server::ADMIN_PASSWORD)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()?;
        let http = reqwest::blocking::Client::builder()
            .no_proxy()
            .tls_danger_accept_invalid_certs(true)
            .tls_info(true)
            .build()?;
        let mut seen = None;
        let waited = wait_until("the server answers over TLS", || {
            let answer = http.get(format!("https://127.0.0.1:{port}/readyz")).send();
            seen = answer.ok().filter(|answer| answer.status() == 200).and_then(|answer| {
                let info = answer.extensions().get::<reqwest::tls::TlsInfo>()?;
                info.peer_certificate().map(<[u8]>::to_vec)
            });
            Ok(seen.is_some())
        });
        child.kill()?;
        child.wait()?;
        waited?;
        served.extend(seen);
    }
    ensure!(served.len() == 2 && served[0] == served[1], "another certificate after a start");
    Ok(())
}

#[test]
fn a_project_is_made_filled_and_only_then_not_deleted() -> Result<()> {
    let scene = Scene::set(Tls::Off)?;
    let admin = scene.server.admin()?;
    scene::create_project(&admin, "hold", true)?;
    let image = Image::unique(&[100])?;
    image.push(&admin, "hold/cargo", "one")?;
    let listed = admin.api(&Method::GET, "/projects?name=hold", None)?.expect(&[200])?.json()?;
    ensure!(listed[0]["name"] == "hold", "{listed}");
    ensure!(listed[0]["metadata"]["public"] == "true", "{listed}");
    // Harbor refuses to delete a project that has repositories.
    admin.api(&Method::DELETE, "/projects/hold", None)?.expect(&[412])?;
    let again = json!({"project_name": "hold"});
    admin.api(&Method::POST, "/projects", Some(&again))?.expect(&[409])?;
    // Nobody sees a private project, and everybody its public neighbour.
    let anonymous = scene.server.client(None)?;
    anonymous.bare(&Method::GET, "/api/v2.0/projects/hold", &Extra::default())?.expect(&[200])?;
    let hidden = format!("/api/v2.0/projects/{}", scene::PRIVATE);
    anonymous.bare(&Method::GET, &hidden, &Extra::default())?.expect(&[401, 403, 404])?;
    Ok(())
}

/// Counts the flushes of one push of one small layer, config, manifest and tag: the figure that
/// docs/ARCHITECTURE.md, "Following a push", states.
#[test]
fn a_push_of_one_small_layer_costs_at_most_four_flushes() -> Result<()> {
    if !tools::present(&[Tool::Program("strace")])? {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let trace = dir.path().join("trace");
    let strace = tools::find("strace")?;
    let wrapper = [
        strace.to_string_lossy().as_ref(),
        "-D",
        "-f",
        "-qq",
        "--seccomp-bpf",
        // Writes the file's path beside its number.
        "-y",
        "-e",
        "trace=fsync,fdatasync,pwritev2,sync_file_range,syncfs,msync",
        "-o",
        trace.to_string_lossy().as_ref(),
        "--",
    ]
    .map(str::to_owned)
    .to_vec();
    let server = Server::start_with(Options { wrapper, ..Options::default() })?;
    let admin = server.admin()?;
    // The first push makes the repository and opens files.
    Image::unique(&[20_000])?.push(&admin, "library/flushes", "warm")?;
    let before = flushes(&trace)?;
    const PUSHES: usize = 10;
    for number in 0..PUSHES {
        Image::unique(&[20_000])?.push(&admin, "library/flushes", &format!("t{number}"))?;
    }
    let after = flushes(&trace)?;
    let (engine, catalog) = (after.0 - before.0, after.1 - before.1);
    say(&format!(
        "flushes of {PUSHES} pushes of one layer, config, manifest and tag: {engine} by the engine, {catalog} by the \
         catalog"
    ));
    ensure!(engine + catalog > 0, "a push without a flush is not durable");
    ensure!(engine <= 4 * PUSHES, "{engine} flushes of the engine for {PUSHES} pushes");
    Ok(())
}

/// Flushes in a trace so far: those of the engine's store, and all others, which are the catalog's.
fn flushes(trace: &std::path::Path) -> Result<(usize, usize)> {
    let text = std::fs::read_to_string(trace)?;
    let is_flush = |line: &&str| line.contains("sync") || line.contains("RWF_DSYNC");
    let calls = text.lines().filter(is_flush).filter(|line| line.contains("</"));
    let (engine, catalog): (Vec<&str>, Vec<&str>) = calls.partition(|line| line.contains("/store/"));
    Ok((engine.len(), catalog.len()))
}

fn with_digest(location: &str, digest: &str) -> String {
    let joint = if location.contains('?') { '&' } else { '?' };
    format!("{location}{joint}digest={digest}")
}

fn read_some(socket: &mut TcpStream) -> Result<String> {
    let mut bytes = [0; 4096];
    let count = socket.read(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes[..count]).into_owned())
}

/// Fills the file system of `path`, until nothing more goes in.
fn fill(path: &std::path::Path) -> Result<()> {
    let mut file = std::fs::File::create(path)?;
    for size in [1 << 20, 64 << 10, 4 << 10] {
        let block = vec![7_u8; size];
        while file.write_all(&block).and_then(|()| file.sync_data()).is_ok() {}
    }
    Ok(())
}

/// Whichever way a blob takes from the page cache to the socket: the same bytes and the same damage found.
#[test]
fn a_large_blob_is_the_same_on_every_path_and_damage_ends_it() -> Result<()> {
    for (path, by_sendfile) in [("sendfile", true), ("mapped", false), ("copy", false), ("auto", false)] {
        let server = Server::start_with(Options::default().key("server", "pull_path", path))?;
        let admin = server.admin()?;
        let bytes = noise(7, 5 * 1024 * 1024 + 333);
        let digest = admin.push_blob("library/large", &bytes)?;
        let url = format!("/v2/library/large/blobs/{digest}");
        let get = |range: &str| {
            let extra = match range {
                "" => Extra::default(),
                range => Extra::default().header("range", format!("bytes={range}")),
            };
            admin.send(&Method::GET, "library/large", "pull", &url, &extra)
        };
        // Past the page cache, filling it, out of it.
        for _ in 0..4 {
            ensure!(get("")?.expect(&[200])?.body == bytes, "{path}");
        }
        for (from, to) in [(0, 0), (262_143, 262_144), (5, 3_000_000), (5_000_000, bytes.len() - 1)] {
            let part = get(&format!("{from}-{to}"))?.expect(&[206])?;
            ensure!(Some(&part.body[..]) == bytes.get(from..=to), "{path}: {from}-{to}");
        }
        let parts = get("0-99,1000000-1000099,3000000-3300000")?.expect(&[206])?;
        ensure!(
            parts.body.windows(100).any(|window| Some(window) == bytes.get(1_000_000..1_000_100)),
            "{path}"
        );
        let log = server.log();
        let metrics = log
            .lines()
            .find_map(|line| line.split_once("taffrail::serve: metrics address="))
            .context("the address of the metrics")?
            .1;
        let page = taffrail_tests::raw::get(metrics.trim(), "/metrics", "")?.text();
        let calls = page.lines().find_map(|line| line.strip_prefix("taffrail_sendfile_calls_total "));
        ensure!((calls.context("the count of calls")? != "0") == by_sendfile, "{path}: {calls:?}");

        let file = solo_file(&server.data_dir().join("store/solo"))?.context("the blob's file")?;
        let file = std::fs::OpenOptions::new().read(true).write(true).open(file)?;
        let (mut byte, at) = ([0], 4096 + 3_000_000);
        file.read_exact_at(&mut byte, at)?;
        file.write_all_at(&[byte[0] ^ 1], at)?;
        file.sync_all()?;
        ensure!(get("").is_err(), "{path}: an answer with damage in it was completed");
        get("")?.expect(&[404])?;
    }
    Ok(())
}

/// The one file below a folder.
fn solo_file(folder: &Path) -> Result<Option<std::path::PathBuf>> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file() {
            return Ok(Some(path));
        }
        if let Some(file) = solo_file(&path)? {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

fn wait_until(what: &str, mut good: impl FnMut() -> Result<bool>) -> Result<()> {
    let started = std::time::Instant::now();
    while started.elapsed() < END_DEADLINE {
        if good()? {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    anyhow::bail!("in {END_DEADLINE:?} not: {what}")
}
