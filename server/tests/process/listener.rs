//! The listener: bounds, timeouts, TLS, what it does not say.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::server::{Options, Server, exchange, get, read_all, read_some, statuses};

#[test]
fn l_06_each_bound_of_a_head_is_met_to_the_byte() {
    let server = Server::start();
    // "GET " and " HTTP/1.1\r\n" are 15 bytes.
    let path = |length: usize| format!("/{}", "a".repeat(length - 16));
    assert_eq!(statuses(&server.get(&path(8192))), [404]);
    assert_eq!(statuses(&server.get(&path(8193))), [414]);
    assert_eq!(statuses(&server.get(&path(70_000))), [414]);

    // Host (15), Connection (17+2) and the last line's name and ends leave the rest to its value.
    let fill = |total: usize| {
        let fixed = "host: localhost\r\nconnection: close\r\n".len() + "x: \r\n".len();
        get("/healthz", &format!("Connection: close\r\nX: {}\r\n", "v".repeat(total - fixed)))
    };
    assert_eq!(statuses(&server.exchange(fill(32 * 1024))), [200]);
    assert_eq!(statuses(&server.exchange(fill(32 * 1024 + 1))), [431]);
    assert_eq!(statuses(&server.exchange(fill(1024 * 1024))), [431]);

    let fields = |count: usize| {
        let more: String = (0..count - 2).map(|index| format!("X-{index}: v\r\n")).collect();
        get("/healthz", &format!("Connection: close\r\n{more}"))
    };
    assert_eq!(statuses(&server.exchange(fields(100))), [200]);
    assert_eq!(statuses(&server.exchange(fields(101))), [431]);
    assert_eq!(statuses(&server.get("/healthz")), [200]);
}

#[test]
fn the_head_of_a_request_for_1024_ranges_fits() {
    let server = Server::start();
    let ranges: Vec<String> =
        (0..1024).map(|index| format!("{}-{}", 1_000_000 + index * 90, 1_000_050 + index * 90)).collect();
    let header = format!("Range: bytes={}\r\nConnection: close\r\n", ranges.join(","));
    assert!(header.len() > 16_000);
    assert_eq!(statuses(&server.exchange(get("/healthz", &header))), [200]);
}

#[test]
fn a_request_needs_one_host() {
    let server = Server::start();
    for lines in ["", "Host: a\r\nHost: a\r\n"] {
        let answer = server.exchange(format!("GET /healthz HTTP/1.1\r\n{lines}Connection: close\r\n\r\n"));
        assert_eq!(statuses(&answer), [400], "{lines:?}");
    }
    for method in ["TRACE", "CONNECT"] {
        let answer =
            server.exchange(format!("{method} /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
        assert!(matches!(statuses(&answer)[..], [400 | 405]), "{method}: {answer}");
    }
}

#[test]
fn l_03_a_head_that_trickles_in_is_cut_and_an_idle_connection_lives_longer() {
    let server = Server::start_with(
        Options::default().key("limits.header_timeout_secs", 1).key("limits.keep_alive_secs", 3),
    );
    let mut trickle = server.connect();
    trickle.write_all(b"GET /healthz HTTP/1.1\r\nHost: local").unwrap();
    let mut idle = server.connect();
    idle.write_all(get("/healthz", "").as_bytes()).unwrap();
    assert_eq!(statuses(&read_some(&mut idle)), [200]);
    let began = Instant::now();
    assert_eq!(read_all(&mut trickle), "", "no answer to half a head");
    let cut_after = began.elapsed();
    assert_eq!(read_all(&mut idle), "");
    let idled_for = began.elapsed();
    assert!((800..2500).contains(&cut_after.as_millis()), "{cut_after:?}");
    assert!((2500..6000).contains(&idled_for.as_millis()), "{idled_for:?}");
    let page = exchange(server.metrics, get("/metrics", "Connection: close\r\n").as_bytes());
    assert!(page.contains("taffrail_connections_timed_out_total{reason=\"header_timeout\"} 1"), "{page}");
    assert!(page.contains("taffrail_connections_timed_out_total{reason=\"keep_alive\"} 1"), "{page}");
}

#[test]
fn l_08_one_address_has_so_many_connections_and_gets_them_back() {
    let mut server = Server::start_with(Options::default().key("limits.connections_per_ip_max", 3));
    let mut held: Vec<TcpStream> = (0..3).map(|_| server.connect()).collect();
    for stream in &mut held {
        stream.write_all(get("/healthz", "").as_bytes()).unwrap();
        assert_eq!(statuses(&read_some(stream)), [200]);
    }
    assert_eq!(statuses(&read_all(&mut server.connect())), [503]);
    drop(held);
    server.wait_for("a connection is free", |server| statuses(&server.get("/healthz")) == [200]);
}

#[test]
fn l_19_few_files_make_few_connections_and_no_spinning() {
    let mut server = Server::start_with(
        Options { files_max: Some(256), ..Options::default() }.key("limits.header_timeout_secs", 60),
    );
    let held: Vec<TcpStream> = (0..300).map(|_| server.connect()).collect();
    let ticks = |server: &Server| -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    // The bound holds: what is beyond it is told so.
    let refused = read_all(&mut held.last().unwrap().try_clone().unwrap());
    assert_eq!(statuses(&refused), [503]);
    let before = ticks(&server);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(1) {
        std::thread::park_timeout(Duration::from_millis(100));
    }
    let spent = ticks(&server) - before;
    assert!(spent <= 20, "{spent} ticks of processor time in a second of nothing");
    drop(held);
    server.wait_for("it recovers", |server| statuses(&server.get("/healthz")) == [200]);
}

#[test]
fn a_tls_client_on_the_plain_port_learns_at_once_that_it_is_plain() {
    let server = Server::start();
    let hello = [0x16, 3, 1, 0, 5, 1, 0, 0, 1, 3, 3];
    let began = Instant::now();
    // Go's clients look for "HTTP/" in the answer to tell this from a broken server.
    assert_eq!(statuses(&server.exchange(hello)), [400]);
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn http2_without_tls_is_not_spoken() {
    let server = Server::start();
    // The preface of HTTP/2 is no request of HTTP/1.1, and a client that sends it would not understand an answer.
    assert_eq!(server.exchange("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), "");
    let upgrade =
        get("/healthz", "Connection: Upgrade, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n");
    assert_eq!(statuses(&server.exchange(upgrade)), [200]);
}

#[test]
fn a_self_made_certificate_serves_both_protocols_and_a_plain_client_is_told() {
    let server = Server::start_with(Options::default().key("tls.mode", "self_signed"));
    let pem = std::fs::read(server.data_dir.join("tls/self-signed.crt")).unwrap();
    let trust = reqwest::Certificate::from_pem(&pem).unwrap();
    let url = format!("https://localhost:{}/readyz", server.address.port());
    for (http1_only, version) in [(false, reqwest::Version::HTTP_2), (true, reqwest::Version::HTTP_11)] {
        let mut client = reqwest::blocking::Client::builder().no_proxy().tls_certs_only([trust.clone()]);
        if http1_only {
            client = client.http1_only();
        }
        let answer = client.build().unwrap().get(&url).send().unwrap();
        assert_eq!((answer.status().as_u16(), answer.version()), (200, version));
    }
    let stranger = reqwest::blocking::Client::builder().no_proxy().build().unwrap();
    assert!(stranger.get(&url).send().is_err(), "nobody vouches for this certificate");
    assert_eq!(statuses(&server.get("/healthz")), [400]);
}

#[test]
fn f_39_a_new_certificate_is_taken_up_while_connections_stay() {
    let make = |dir: &std::path::Path| {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (chain, key) = (dir.join("chain.pem"), dir.join("key.pem"));
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::write(&chain, made.cert.pem()).unwrap();
        (chain, key, made.cert.pem())
    };
    let dir = tempfile::tempdir().unwrap();
    let (chain, key, first) = make(dir.path());
    let mut server = Server::start_with(
        Options::default()
            .key("tls.mode", "files")
            .key("tls.cert_file", chain.display())
            .key("tls.key_file", key.display()),
    );
    let client = |pem: &str| {
        let trust = reqwest::Certificate::from_pem(pem.as_bytes()).unwrap();
        reqwest::blocking::Client::builder().no_proxy().tls_certs_only([trust]).build().unwrap()
    };
    let url = format!("https://localhost:{}/healthz", server.address.port());
    let old = client(&first);
    assert_eq!(old.get(&url).send().unwrap().status(), 200);
    let (_, _, second) = make(dir.path());
    server.wait_for("the new certificate is served", |_| client(&second).get(&url).send().is_ok());
    assert_eq!(old.get(&url).send().unwrap().status(), 200, "its connection is still the old one");
    assert!(client(&first).get(&url).send().is_err());
}

#[test]
fn s_76_an_id_is_echoed_when_it_is_one_and_a_log_line_stays_one_line() {
    let mut server = Server::start_with(Options::default().key("log.format", "json"));
    let good = server.exchange(get("/healthz", "X-Request-ID: abc-123\r\nConnection: close\r\n"));
    assert!(good.contains("x-request-id: abc-123\r\n"), "{good}");
    let bad = server.exchange(get(
        "/healthz",
        "X-Request-ID: a b\r\nUser-Agent: x\u{2028}y\u{85}z\t\"}{\r\nConnection: close\r\n",
    ));
    assert!(!bad.contains("a b"), "{bad}");
    server.wait_for("both are logged", |server| server.log().matches("\"path\":\"/healthz\"").count() == 2);
    for line in server.log().split('\n').filter(|line| !line.is_empty()) {
        let event: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(event["timestamp"].is_string(), "{line}");
    }
    assert!(server.log().contains("\\u2028") && !server.log().contains('\u{2028}'), "{}", server.log());
}

#[test]
fn s_59_the_public_port_has_no_metrics_and_their_port_has_nothing_else() {
    let server = Server::start();
    for path in ["/metrics", "/debug/pprof", "/debug/pprof/heap", "/api/internal", "/metrics/", "//metrics"] {
        let answer = server.get(path);
        assert!(matches!(statuses(&answer)[..], [401 | 404]), "{path}: {answer}");
        assert!(!answer.contains("taffrail_"), "{path}: {answer}");
    }
    let plain = server.get("/healthz");
    let verbose = server.get("/healthz?verbose=1");
    assert_eq!(plain.rsplit("\r\n\r\n").next(), verbose.rsplit("\r\n\r\n").next());
    let ask = |path: &str| exchange(server.metrics, get(path, "Connection: close\r\n").as_bytes());
    assert_eq!(statuses(&ask("/metrics")), [200]);
    for path in ["/", "/v2/", "/healthz", "/api/v2.0/ping"] {
        assert_eq!(statuses(&ask(path)), [404], "{path}");
    }
}

#[test]
fn every_metric_is_documented_and_every_documented_metric_exists() {
    let server = Server::start();
    // One request, so that the metrics by route have a sample.
    assert_eq!(statuses(&server.get("/healthz")), [200]);
    let page = exchange(server.metrics, get("/metrics", "Connection: close\r\n").as_bytes());
    let document = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations/metrics.md");
    let document = std::fs::read_to_string(document).unwrap();
    let documented: std::collections::BTreeSet<&str> =
        document.lines().filter_map(|line| line.strip_prefix("| `taffrail_")?.split('`').next()).collect();
    let mut exported = std::collections::BTreeSet::new();
    for line in page.lines().filter(|line| line.starts_with("taffrail_")) {
        let name = line.split(['{', ' ']).next().unwrap();
        let family =
            ["_bucket", "_count", "_sum"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        exported.insert(family.strip_prefix("taffrail_").unwrap());
    }
    let undocumented: Vec<_> = exported.difference(&documented).collect();
    assert!(undocumented.is_empty(), "not in docs/operations/metrics.md: {undocumented:?}");
    // What has not happened yet has no sample; that it is registered is tested where the metrics are made.
    assert!(exported.len() >= 20, "{exported:?}");
    for name in ["http_requests_total", "http_request_duration_seconds", "store_blobs", "store_flushes_total"]
    {
        assert!(exported.contains(name), "{name} is not exported");
    }
}

#[test]
fn s_36_and_37_who_asks_and_where_we_are_is_not_for_a_request_to_say() {
    let lies = "X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: evil.example\r\n\
                X-Real-IP: 203.0.113.9\r\nForwarded: for=203.0.113.9;host=evil.example\r\nX-WEBAUTH-USER: admin\r\n\
                Connection: close\r\n";
    let mut server =
        Server::start_with(Options::default().key("server.external_url", "https://registry.example.org"));
    for request in [
        format!("GET /v2/ HTTP/1.1\r\nHost: evil.example\r\n{lies}\r\n"),
        format!("GET http://evil.example/v2/ HTTP/1.1\r\nHost: localhost\r\n{lies}\r\n"),
    ] {
        let answer = server.exchange(request);
        assert_eq!(statuses(&answer), [401], "{answer}");
        assert!(answer.contains("realm=\"https://registry.example.org/service/token\""), "{answer}");
        assert!(!answer.contains("evil"), "{answer}");
    }
    server.wait_for("both are logged", |server| server.log().matches("client=127.0.0.1").count() == 2);
    assert!(!server.log().contains("203.0.113.9"), "{}", server.log());

    let mut server = Server::start_with(Options::default().key("server.trusted_proxies", "127.0.0.0/8,::1"));
    server.exchange(get("/healthz", lies));
    server.wait_for("it is logged", |server| server.log().contains("client=203.0.113.9"));
}

#[test]
fn l_07_a_body_one_byte_too_long_is_refused_whether_announced_or_not() {
    let server = Server::start();
    for (path, kind, bytes_max) in [
        ("/service/token", "application/x-www-form-urlencoded", 64 * 1024),
        ("/api/v2.0/users", "application/json", 1024 * 1024),
    ] {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nConnection: close\r\n\
             Authorization: Basic YWRtaW46SGFyYm9yLUxpZ2h0LTc=\r\n"
        );
        let announced = |bytes: usize| format!("{head}Content-Length: {bytes}\r\n\r\n{}", "a".repeat(bytes));
        let chunked = |bytes: usize| {
            format!("{head}Transfer-Encoding: chunked\r\n\r\n{bytes:x}\r\n{}\r\n0\r\n\r\n", "a".repeat(bytes))
        };
        for request in [announced(bytes_max), chunked(bytes_max)] {
            let answer = server.exchange(request);
            assert!(matches!(statuses(&answer)[..], [400..=412 | 414..=422]), "{path}: {answer}");
        }
        for request in [announced(bytes_max + 1), chunked(bytes_max + 1)] {
            let answer = server.exchange(request);
            assert_eq!(statuses(&answer), [413], "{path}: {answer}");
        }
    }
}

#[test]
fn f_43_a_log_that_nobody_reads_holds_no_request_up() {
    let server = Server::start_with(Options { log_stalls: true, ..Options::default() });
    let mut stream = server.connect();
    // A line has some 300 bytes: this is several times what pipe and queue hold.
    for _ in 0..60 {
        stream.write_all(get("/healthz", "").repeat(200).as_bytes()).unwrap();
        let mut answered = 0;
        while answered < 200 {
            answered += statuses(&read_some(&mut stream)).len();
        }
    }
    let page = exchange(server.metrics, get("/metrics", "Connection: close\r\n").as_bytes());
    let dropped =
        page.lines().find_map(|line| line.strip_prefix("taffrail_log_lines_dropped_total ")).unwrap();
    assert!(dropped.parse::<u64>().unwrap() > 1000, "{dropped}");
}
