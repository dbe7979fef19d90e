//! Odd requests by the thousand: no 5xx, no panic, nothing authorised but what is handled (S-77, S-78, S-79).

use http::{Method, Request};
use http_body_util::Full;
use taffrail_distribution::access::Action;

use crate::client::{Scene, sha256};

/// Small, seeded and good enough to pick test cases.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % sides as u64).unwrap()
    }

    fn pick<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.roll(choices.len())]
    }
}

const PIECES: [&str; 44] = [
    "/",
    "//",
    "v2",
    "pa",
    "secret",
    "pb",
    "app",
    "blobs",
    "uploads",
    "manifests",
    "tags",
    "list",
    "referrers",
    "_catalog",
    "_oci/ext/discover",
    "latest",
    "v1",
    "..",
    ".",
    "%2e%2e",
    "%2F",
    "%252f",
    "%00",
    "%0d%0a",
    "%ff",
    ";x",
    "A",
    "é",
    "sha256:",
    "sha512:",
    "md5:",
    "DIGEST",
    "SHORT",
    "LONG",
    "?",
    "&",
    "=",
    "n=1",
    "last=",
    "digest=",
    "mount=",
    "from=pa/secret",
    "tag=",
    "30313233-3435-3637-3839-6a6b6c6d6e6f",
];

const WHOLE: [&str; 8] = [
    "",
    "",
    "tags/list?",
    "manifests/v1?",
    "blobs/uploads/?",
    "manifests/sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a?",
    "blobs/sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a?",
    "referrers/sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a?",
];

const VALUES: [&str; 16] = [
    "",
    "0",
    "-1",
    "0-",
    "bytes=0-",
    "bytes=5-1",
    "bytes=0-0,1-1",
    "0-9",
    "9-0",
    "*",
    "\"x\"",
    "W/\"x\"",
    "application/vnd.oci.image.manifest.v1+json",
    "text/html",
    "99999999999999999999",
    "bytes 0-1/*",
];

#[tokio::test]
async fn no_odd_request_gives_a_5xx_or_reaches_what_was_not_authorised() {
    let scene = Scene::new();
    let digest = scene.push_image("alice", "pa/secret", "v1").await.to_string();
    scene.push_image("bob", "pb/app", "v1").await;
    let secret = scene.catalog.with(|inner| inner.manifests.len());
    let long = "a".repeat(300);
    let methods = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    let headers = [
        "Range",
        "Content-Range",
        "If-Match",
        "If-None-Match",
        "If-Range",
        "Content-Type",
        "Accept",
        "Authorization",
    ];
    let seed = 0x7af_f4a1;
    let mut dice = Dice(seed);
    let mut answered = 0;
    for round in 0..30_000 {
        let mut path = if dice.roll(4) == 0 { String::new() } else { "/v2/".to_owned() };
        if dice.roll(2) == 0 {
            path.push_str(dice.pick(&["pa/secret/", "pb/app/"]));
            // Often a whole route, so that what follows is not always stopped at the path.
            path.push_str(dice.pick(&WHOLE));
        }
        for _ in 0..dice.roll(7) {
            let piece = dice.pick(&PIECES);
            path.push_str(match piece {
                "DIGEST" => &digest,
                "SHORT" => &digest[..70],
                "LONG" => &long,
                piece => piece,
            });
            if dice.roll(3) > 0 {
                path.push('/');
            }
        }
        let method = methods[dice.roll(methods.len())].clone();
        let mut request = Request::builder().method(method.clone()).uri(path.as_str());
        if dice.roll(8) > 0 {
            request = request.header("Authorization", "User bob");
        }
        for _ in 0..dice.roll(3) {
            request = request.header(dice.pick(&headers), dice.pick(&VALUES));
        }
        let body = dice.pick(&["", "{}", "x", "{\"schemaVersion\":2}", "\u{0}\u{1}"]);
        let Ok(request) = request.body(Full::new(bytes::Bytes::from_static(body.as_bytes()))) else {
            continue;
        };
        scene.access.asked.lock().unwrap().clear();
        let response = scene.registry.handle(request).await;
        let what = format!("seed {seed:#x}, round {round}: {method} {path:?} -> {}", response.status());
        assert!(!response.status().is_server_error(), "{what}");
        assert!(!response.status().is_redirection() || response.status() == 304, "{what}");
        for value in response.headers().values() {
            assert!(!value.as_bytes().contains(&b'\n') && !value.as_bytes().contains(&b'\r'), "{what}");
        }
        // Bob may never have been let into pa, so nothing of it can be in an answer or have changed.
        let asked = scene.access.asked.lock().unwrap().clone();
        if response.status().is_success() {
            answered += 1;
            for (user, action, name) in &asked {
                let mount = method == Method::POST && *action == Action::Pull;
                let referrers = path.contains("/referrers/") && *action == Action::Pull;
                assert!(user != "bob" || name.starts_with("pb/") || mount || referrers, "{what}: {asked:?}");
            }
        }
    }
    assert!(answered > 1_000, "{answered} of the requests meant something");
    let key = scene.key("pa/secret");
    let left =
        scene.catalog.with(|inner| inner.manifests.keys().filter(|(holder, _)| *holder == key).count());
    assert_eq!(left, secret - 1);
    assert!(scene.links("pa/secret", &sha256(b"{}")));
}

/// S-77: nothing that a client sends comes back as a line of its own in a header.
#[tokio::test]
async fn line_breaks_in_what_is_echoed_are_refused_or_escaped() {
    let scene = Scene::new();
    scene.push_image("alice", "pa/app", "v1").await;
    let digest = scene.push_image("alice", "pa/app", "v2").await;
    for path in [
        "/v2/pa/app/manifests/v1%0d%0aX-Evil:%201".to_owned(),
        format!("/v2/pa/app/manifests/{digest}%0d%0a"),
        format!("/v2/pa/app/blobs/{digest}%0a"),
        format!("/v2/pa/app/referrers/{digest}%0a"),
        "/v2/pa%0d%0a/app/tags/list".to_owned(),
    ] {
        scene.get("alice", &path).expect(400).await;
    }
    scene.put("alice", format!("/v2/pa/app/manifests/{digest}?tag=a%0d%0ab")).expect(400).await;
    let answer = scene.get("alice", "/v2/pa/app/tags/list?n=1&last=%0d%0aX-Evil").expect(200).await;
    assert!(answer.headers.get("x-evil").is_none());
}

/// S-78: 400 with the code of the spec, or 404, and never a redirect.
#[tokio::test]
async fn malformed_names_and_digests_have_their_codes() {
    let scene = Scene::new();
    scene.push_image("alice", "pa/app", "v1").await;
    let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    for (path, code) in [
        (format!("/v2/pa/app/blobs/sha256:{}", &hex[1..]), "DIGEST_INVALID"),
        (format!("/v2/pa/app/blobs/sha256:{hex}0"), "DIGEST_INVALID"),
        (format!("/v2/pa/app/blobs/sha256:{}", hex.to_uppercase()), "DIGEST_INVALID"),
        (format!("/v2/pa/app/blobs/md5:{hex}"), "DIGEST_INVALID"),
        ("/v2/pa/app/blobs/..".to_owned(), "DIGEST_INVALID"),
        (format!("/v2/pa/{}/tags/list", "a".repeat(256)), "NAME_INVALID"),
        ("/v2/pa/аpp/tags/list".to_owned(), "NAME_INVALID"),
        ("/v2/pa/../app/tags/list".to_owned(), "NAME_INVALID"),
        ("/v2/pa\\app/tags/list".to_owned(), "NAME_INVALID"),
    ] {
        scene.get("alice", &path).refused(400, code).await;
    }
}

/// The conformance program of 2023 reads `.INVALID_MANIFEST_NAME` and wants 404, as distribution answers.
#[tokio::test]
async fn a_malformed_tag_is_unknown_to_readers_and_refused_to_writers() {
    let scene = Scene::new();
    scene.push_image("alice", "pa/app", "v1").await;
    for tag in ["..", "%2e%2e%2f", ".INVALID_MANIFEST_NAME", &"t".repeat(129)] {
        let path = format!("/v2/pa/app/manifests/{tag}");
        scene.get("alice", &path).refused(404, "MANIFEST_UNKNOWN").await;
        scene.put("alice", &path).refused(400, "NAME_INVALID").await;
    }
}
