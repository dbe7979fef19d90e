//! S-42 to S-57: what is in one project does not exist for those who may not see it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use reqwest::Method;
use serde_json::json;
use taffrail_tests::http::{Extra, OCI_INDEX, OCI_MANIFEST, sha256};
use taffrail_tests::images::{Image, noise};
use taffrail_tests::scene::{DEVELOPER, PRIVATE};

use super::{OTHER, Stage, own_repository, secret_repository, shape, unknown_digest};

const OCTETS: &str = "application/octet-stream";
const PUSH: &str = "pull,push";

#[test]
fn s_42_a_blob_that_another_project_has_does_not_exist_here() -> Result<()> {
    let stage = Stage::set()?;
    let repository = own_repository();
    Image::unique(&[100])?.push(&stage.outsider, &repository, "one")?;
    let (known, unknown) = (stage.secret_layer(), unknown_digest());
    for method in [Method::GET, Method::HEAD] {
        for range in ["", "bytes=0-10"] {
            let ask = |digest: &str| {
                let extra =
                    if range.is_empty() { Extra::default() } else { Extra::default().header("range", range) };
                let path = format!("/v2/{repository}/blobs/{digest}");
                stage.outsider.send(&method, &repository, "pull", &path, &extra)
            };
            let (there, nowhere) = (ask(&known)?, ask(&unknown)?);
            ensure!(there.status == 404, "{method} answered {}", there.status);
            ensure!(shape(&there, &known) == shape(&nowhere, &unknown), "{there:?}\n{nowhere:?}");
        }
    }
    let (known, unknown) = (stage.secret.digest(), unknown_digest());
    let (there, nowhere) =
        (stage.outsider.manifest(&repository, &known)?, stage.outsider.manifest(&repository, &unknown)?);
    ensure!(
        there.status == 404 && shape(&there, &known) == shape(&nowhere, &unknown),
        "{there:?}\n{nowhere:?}"
    );
    // A repository that one may not see answers as one that never was.
    let hidden = stage.outsider.manifest(&secret_repository(), "one")?;
    let never = stage.outsider.manifest(&format!("{PRIVATE}/nothing"), "one")?;
    let absent = stage.outsider.manifest("no-such-project/secret", "one")?;
    ensure!(
        hidden.status == never.status && hidden.status == absent.status,
        "{hidden:?} {never:?} {absent:?}"
    );
    ensure!([401, 403, 404].contains(&hidden.status));
    Ok(())
}

#[test]
fn s_43_an_upload_of_bytes_that_are_here_already_is_like_any_other() -> Result<()> {
    let stage = Stage::set()?;
    let repository = own_repository();
    let known = stage.secret_layer_bytes()?;
    let random = noise(rand::random(), known.len());
    let mut shapes = Vec::new();
    for bytes in [&known, &random] {
        let digest = sha256(bytes);
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        // Half of the body is no reason to say that the rest is not needed.
        let location = stage.outsider.begin_upload(&repository)?;
        let half = Extra::body(OCTETS, &bytes[..bytes.len() / 2]);
        let cut = stage.outsider.send(&Method::PATCH, &repository, PUSH, &location, &half)?.expect(&[202])?;
        let joint = if stage.outsider.location(&cut)?.contains('?') { '&' } else { '?' };
        let put = format!("{}{joint}digest={digest}", stage.outsider.location(&cut)?);
        let early = stage.outsider.send(&Method::PUT, &repository, PUSH, &put, &Extra::default())?;
        ensure!(early.status == 400, "half of the bytes were answered {}", early.status);
        let whole = stage.outsider.send(
            &Method::POST,
            &repository,
            PUSH,
            &path,
            &Extra::body(OCTETS, bytes.clone()),
        )?;
        ensure!(whole.status == 201, "{}", whole.text());
        shapes.push((shape(&early, &digest).0, shape(&whole, &digest)));
    }
    ensure!(shapes[0] == shapes[1], "{shapes:?}");
    Ok(())
}

#[test]
fn s_44_and_45_a_mount_needs_the_right_to_pull_what_it_mounts() -> Result<()> {
    let stage = Stage::set()?;
    let (repository, secret) = (own_repository(), stage.secret_layer());
    let froms = [
        format!("&from={}", secret_repository()),
        String::new(),
        "&from=..".to_owned(),
        format!("&from={OTHER}/else"),
        format!("&from={}%00", secret_repository()),
    ];
    for from in froms {
        let path = format!("/v2/{repository}/blobs/uploads/?mount={secret}{from}");
        let scopes =
            [format!("repository:{repository}:{PUSH}"), format!("repository:{}:pull", secret_repository())];
        let scopes: Vec<&str> = scopes.iter().map(String::as_str).collect();
        let answer = stage.outsider.send_scoped(&Method::POST, &scopes, &path, &Extra::default())?;
        ensure!([202, 400].contains(&answer.status), "{from:?}: answered {}", answer.status);
        ensure!(stage.outsider.blob(&repository, &secret)?.status == 404, "{from:?}: mounted");
    }
    // The right taken back between the token and the mount.
    ensure!(
        stage.insider.mount(&format!("{PRIVATE}/copy"), &secret_repository(), &secret)?,
        "a rightful mount"
    );
    Ok(())
}

#[test]
fn s_46_and_47_a_manifest_cannot_name_what_one_may_not_see() -> Result<()> {
    let stage = Stage::set()?;
    let repository = own_repository();
    let own = Image::unique(&[200])?;
    own.push(&stage.outsider, &repository, "own")?;
    let (secret, size) = (stage.secret_layer(), stage.secret_layer_bytes()?.len());
    let config = own.blobs()[0].clone();
    let with_layer = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": own.config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": secret, "size": size}],
    });
    let with_child = json!({
        "schemaVersion": 2, "mediaType": OCI_INDEX,
        "manifests": [{
            "mediaType": OCI_MANIFEST, "digest": stage.secret.digest(), "size": stage.secret.manifest.len(),
        }],
    });
    for (body, media_type) in [(with_layer, OCI_MANIFEST), (with_child, OCI_INDEX)] {
        let path = format!("/v2/{repository}/manifests/stolen");
        let extra = Extra::body(media_type, body.to_string());
        let answer = stage.outsider.send(&Method::PUT, &repository, PUSH, &path, &extra)?;
        ensure!([400, 404].contains(&answer.status), "answered {}: {}", answer.status, answer.text());
        ensure!(
            answer.text().contains("MANIFEST_BLOB_UNKNOWN") || answer.text().contains("MANIFEST_UNKNOWN")
        );
    }
    ensure!(stage.outsider.blob(&repository, &secret)?.status == 404);
    ensure!(stage.outsider.manifest(&repository, &stage.secret.digest())?.status == 404);

    // A subject may be anything; it brings nothing to light.
    let mut referring: serde_json::Value = serde_json::from_slice(&own.manifest)?;
    referring["subject"] = json!({
        "mediaType": OCI_MANIFEST, "digest": stage.secret.digest(), "size": stage.secret.manifest.len(),
    });
    stage.outsider.push_manifest(&repository, "referring", OCI_MANIFEST, referring.to_string().as_bytes())?;
    ensure!(stage.outsider.manifest(&repository, &stage.secret.digest())?.status == 404);
    stage.insider.manifest(&secret_repository(), "one")?.expect(&[200])?;
    let path = format!("/v2/{}/referrers/{}", secret_repository(), stage.secret.digest());
    let list = stage.insider.send(&Method::GET, &secret_repository(), "pull", &path, &Extra::default())?;
    let list = list.expect(&[200])?.json()?;
    ensure!(list["manifests"].as_array().is_some_and(Vec::is_empty), "{list}");
    let path = format!("/v2/{repository}/referrers/{}", unknown_digest());
    let list = stage.outsider.send(&Method::GET, &repository, "pull", &path, &Extra::default())?;
    ensure!(list.expect(&[200])?.json()?["manifests"].as_array().is_some_and(Vec::is_empty));
    Ok(())
}

#[test]
fn s_48_what_is_deleted_or_closed_here_is_gone_here_and_stands_elsewhere() -> Result<()> {
    let stage = Stage::set()?;
    let repository = own_repository();
    let image = Image::unique(&[50_000])?;
    image.push(&stage.insider, &secret_repository(), "both")?;
    image.push(&stage.outsider, &repository, "both")?;
    let layer = image.blobs()[1].clone();
    stage.admin.delete_manifest(&secret_repository(), &image.digest())?.expect(&[202])?;
    stage.admin.delete_blob(&secret_repository(), &layer)?.expect(&[202, 404])?;
    ensure!(stage.insider.blob(&secret_repository(), &layer)?.status == 404);
    ensure!(sha256(&stage.outsider.blob(&repository, &layer)?.expect(&[200])?.body) == layer);

    // A project that becomes private is closed to everybody at once.
    taffrail_tests::scene::create_project(&stage.admin, "pier", true)?;
    image.push(&stage.admin, "pier/app", "one")?;
    let anonymous = stage.scene.server.client(None)?;
    anonymous.manifest("pier/app", "one")?.expect(&[200])?;
    let body = json!({"metadata": {"public": "false"}});
    stage.admin.api(&Method::PUT, "/projects/pier", Some(&body))?.expect(&[200])?;
    let closed = Instant::now();
    while anonymous.manifest("pier/app", "one").is_ok_and(|answer| answer.status == 200) {
        ensure!(closed.elapsed() < Duration::from_secs(1), "still open after a second");
    }
    Ok(())
}

/// Who is shown the door while a body is on its way ends it in vain: the right is asked for once more before anything is linked.
#[test]
fn s_48_a_push_that_outlives_the_right_to_it_links_nothing() -> Result<()> {
    let stage = Stage::set()?;
    let repository = secret_repository();
    let members = stage.admin.api(&Method::GET, &format!("/projects/{PRIVATE}/members"), None)?.json()?;
    let members = members.as_array().context("members")?;
    let member =
        members.iter().find(|member| member["entity_name"] == DEVELOPER.0).context("the developer")?;
    let member = format!("/projects/{PRIVATE}/members/{}", member["id"]);
    let token = stage.insider.token(&[&format!("repository:{repository}:{PUSH}")])?;
    let host = stage.scene.server.host();
    let bytes = noise(rand::random(), 200_000);
    let (digest, location) = (sha256(&bytes), stage.insider.begin_upload(&repository)?);
    let joint = if location.contains('?') { '&' } else { '?' };
    let manifest = [stage.secret.manifest.clone(), b"\n".to_vec()].concat();
    let puts = [
        (format!("POST /v2/{repository}/blobs/uploads/?digest={digest}"), OCTETS, &bytes),
        (format!("PUT {location}{joint}digest={digest}"), OCTETS, &bytes),
        (format!("PUT /v2/{repository}/manifests/one"), OCI_MANIFEST, &manifest),
    ];
    let mut sockets = Vec::new();
    for (line, media_type, body) in &puts {
        let mut socket = TcpStream::connect(&host)?;
        let half = body.len() / 2;
        write!(
            socket,
            "{line} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\nContent-Type: {media_type}\r\n\
             Content-Length: {}\r\nConnection: close\r\nExpect: 100-continue\r\n\r\n",
            body.len()
        )?;
        // The server asks for the body once it has given leave.
        let mut interim = [0; 25];
        socket.read_exact(&mut interim)?;
        ensure!(interim.starts_with(b"HTTP/1.1 100"), "{}", String::from_utf8_lossy(&interim));
        socket.write_all(&body[..half])?;
        sockets.push((socket, half));
    }
    stage.admin.api(&Method::DELETE, &member, None)?.expect(&[200])?;
    for ((mut socket, half), (line, _, body)) in sockets.into_iter().zip(&puts) {
        socket.write_all(&body[half..])?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 403"), "{line}: {answer}");
    }
    ensure!(stage.admin.blob(&repository, &digest)?.status == 404, "the blob is linked");
    ensure!(stage.admin.manifest(&repository, &sha256(&manifest))?.status == 404, "the manifest is there");
    let tagged = stage.admin.manifest(&repository, "one")?.expect(&[200])?;
    ensure!(tagged.header("docker-content-digest") == stage.secret.digest(), "the tag moved");
    Ok(())
}

#[test]
fn s_51_and_55_the_catalog_shows_only_what_one_may_see() -> Result<()> {
    let stage = Stage::set()?;
    Image::unique(&[100])?.push(&stage.outsider, &own_repository(), "one")?;
    let host = stage.scene.server.host();
    for path in [
        "/v2/_catalog",
        "/v2/_catalog/",
        "//v2/_catalog",
        "/v2//_catalog",
        "/v2/./_catalog",
        "/v2/x/../_catalog",
        "/v2/%5fcatalog",
        "/V2/_catalog",
        "/v2/_catalog;x",
    ] {
        let answer = taffrail_tests::raw::get(&host, path, "")?;
        ensure!([400, 401, 403, 404].contains(&answer.status), "{path} answered {}", answer.status);
        ensure!(!answer.text().contains("secret"), "{path}: {}", answer.text());
    }
    let seen = stage.outsider.send_scoped(
        &Method::GET,
        &["registry:catalog:*"],
        "/v2/_catalog?n=1000",
        &Extra::default(),
    )?;
    ensure!(!seen.text().contains(PRIVATE), "{}", seen.text());
    let all = stage.admin.send_scoped(
        &Method::GET,
        &["registry:catalog:*"],
        "/v2/_catalog?n=1000",
        &Extra::default(),
    )?;
    let all = all.expect(&[200])?.json()?.to_string();
    ensure!(all.contains(&secret_repository()) && all.contains(&own_repository()), "{all}");

    let anonymous = stage.scene.server.client(None)?;
    let projects = anonymous.bare(&Method::GET, "/api/v2.0/projects?page_size=100", &Extra::default())?;
    let text = projects.expect(&[200])?.text();
    ensure!(text.contains("library") && !text.contains(PRIVATE) && !text.contains(OTHER), "{text}");
    Ok(())
}

#[test]
fn s_52_and_53_pages_are_whole_and_bounded() -> Result<()> {
    let stage = Stage::set()?;
    let repository = own_repository();
    let image = Image::unique(&[100])?;
    let tags = ["v1", "v1.0", "v1-a", "a", "b", "Z", "_x", "v10", "v2"];
    for tag in tags {
        image.push(&stage.outsider, &repository, tag)?;
    }
    let mut due: Vec<&str> = tags.to_vec();
    due.sort_unstable();
    let page = |query: &str| {
        let path = format!("/v2/{repository}/tags/list{query}");
        stage.outsider.send(&Method::GET, &repository, "pull", &path, &Extra::default())
    };
    for size in [1, 2, 7] {
        let (mut seen, mut query) = (Vec::new(), format!("?n={size}"));
        loop {
            let answer = page(&query)?.expect(&[200])?;
            let body = answer.json()?;
            let tags = body["tags"].as_array().context("tags")?;
            ensure!(tags.len() <= size);
            seen.extend(tags.iter().filter_map(|tag| tag.as_str()).map(str::to_owned));
            let link = answer.header("link").to_owned();
            let Some((_, after)) = link.split_once("/tags/list") else { break };
            query = after.split('>').next().unwrap_or_default().to_owned();
        }
        ensure!(seen == due, "n={size}: {seen:?}");
    }
    // A `last` that is no tag, any more or ever, is a place in the order.
    let after = page("?last=v1.")?.expect(&[200])?.json()?;
    ensure!(after["tags"] == json!(["v1.0", "v10", "v2"]), "{after}");
    let long = format!("?n={}", "9".repeat(10_000));
    for query in [
        "?n=0",
        "?n=-1",
        "?n=abc",
        "?n=100000000000",
        "?n=9223372036854775808",
        &long,
        "?n=1&n=2",
        "?last=%00",
    ] {
        let status = page(query)?.status;
        ensure!([200, 400, 414].contains(&status), "{} answered {status}", &query[..query.len().min(30)]);
    }
    Ok(())
}

#[test]
fn s_56_and_57_an_upload_belongs_to_its_repository() -> Result<()> {
    let stage = Stage::set()?;
    let bytes = noise(rand::random(), 2_000_000);
    let location = stage.insider.begin_upload(&secret_repository())?;
    let first = Extra::body(OCTETS, &bytes[..1_000_000]);
    let answer =
        stage.insider.send(&Method::PATCH, &secret_repository(), PUSH, &location, &first)?.expect(&[202])?;
    let location = stage.insider.location(&answer)?;
    let elsewhere = location.replacen(&secret_repository(), &own_repository(), 1);
    ensure!(elsewhere != location);
    for method in [Method::GET, Method::PATCH, Method::PUT, Method::DELETE] {
        let query = if method == Method::PUT { format!("?digest={}", sha256(&bytes)) } else { String::new() };
        let extra = if method == Method::GET { Extra::default() } else { Extra::body(OCTETS, "x") };
        for (path, who) in [(&elsewhere, "in his own repository"), (&location, "in ours")] {
            let repository = if path == &elsewhere { own_repository() } else { secret_repository() };
            let answer =
                stage.outsider.send(&method, &repository, PUSH, &format!("{path}{query}"), &extra)?;
            ensure!([401, 403, 404].contains(&answer.status), "{method} {who} answered {}", answer.status);
        }
    }
    // An id that is one letter off is no id.
    let mut bent = location.clone().into_bytes();
    if let Some(last) = bent.last_mut() {
        *last = if *last == b'0' { b'1' } else { b'0' };
    }
    let bent = String::from_utf8(bent)?;
    let answer = stage.insider.send(&Method::GET, &secret_repository(), PUSH, &bent, &Extra::default())?;
    ensure!([400, 404].contains(&answer.status), "answered {}", answer.status);

    let rest = Extra::body(OCTETS, &bytes[1_000_000..]);
    let answer =
        stage.insider.send(&Method::PATCH, &secret_repository(), PUSH, &location, &rest)?.expect(&[202])?;
    let joint = if stage.insider.location(&answer)?.contains('?') { '&' } else { '?' };
    let put = format!("{}{joint}digest={}", stage.insider.location(&answer)?, sha256(&bytes));
    stage.insider.send(&Method::PUT, &secret_repository(), PUSH, &put, &Extra::default())?.expect(&[201])?;
    // And is over when it is over.
    let answer = stage.insider.send(
        &Method::PATCH,
        &secret_repository(),
        PUSH,
        &location,
        &Extra::body(OCTETS, "x"),
    )?;
    ensure!(answer.status == 404, "answered {}", answer.status);
    ensure!(stage.insider.blob(&secret_repository(), &sha256(&bytes))?.expect(&[200])?.body == bytes);
    Ok(())
}
