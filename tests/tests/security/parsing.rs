//! S-77 to S-85: names, manifests and numbers that nobody sends by accident.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use taffrail_tests::http::{Answer, Extra, OCI_INDEX, OCI_MANIFEST, sha256};
use taffrail_tests::images::Image;

use super::{Stage, unknown_digest};

const REPOSITORY: &str = "library/parsing";
const PUSH: &str = "pull,push";

/// No manifest takes longer to be refused, on a slow machine and an unoptimised build.
const REFUSAL_MAX: Duration = Duration::from_secs(3);

fn put(stage: &Stage, reference: &str, media_type: &str, body: Vec<u8>) -> Result<Answer> {
    let path = format!("/v2/{REPOSITORY}/manifests/{reference}");
    stage.admin.send(&Method::PUT, REPOSITORY, PUSH, &path, &Extra::body(media_type, body))
}

#[test]
fn s_77_and_78_names_that_are_none_are_refused_by_name() -> Result<()> {
    let stage = Stage::set()?;
    Image::unique(&[100])?.push(&stage.admin, REPOSITORY, "one")?;
    let token = stage.admin.token(&[&format!("repository:{REPOSITORY}:pull,push")])?;
    let line = format!("Authorization: Bearer {token}\r\n");
    let host = stage.scene.server.host();
    let hex = "a".repeat(64);
    let references = [
        "..".to_owned(),
        "%2e%2e%2f".to_owned(),
        "..%2f..%2fetc%2fpasswd".to_owned(),
        "%252e".to_owned(),
        "%5c".to_owned(),
        "a%00b".to_owned(),
        "sha256:../x".to_owned(),
        format!("sha256:{}", &hex[1..]),
        format!("sha256:{hex}a"),
        format!("sha256:{}", hex.to_uppercase()),
        format!("md5:{}", &hex[..32]),
        "a".repeat(129),
        "%d0%b0".to_owned(),
        "a%0d%0aX-Injected:1".to_owned(),
        "-a".to_owned(),
        ".a".to_owned(),
        "%ff%fe".to_owned(),
        "%".to_owned(),
        "%zz".to_owned(),
    ];
    for reference in &references {
        for kind in ["manifests", "blobs", "referrers", "blobs/uploads"] {
            let answer =
                taffrail_tests::raw::get(&host, &format!("/v2/{REPOSITORY}/{kind}/{reference}"), &line)?;
            ensure!([400, 404].contains(&answer.status), "{kind}/{reference} answered {}", answer.status);
            ensure!(answer.header("x-injected").is_empty(), "{kind}/{reference} put a header in");
            let text = answer.text();
            ensure!(!text.contains("/store") && !text.contains("panicked"), "{kind}/{reference}: {text}");
        }
    }
    for name in
        ["..%2f..", "a%2f%2e%2e", "A", "a_", "a__b__", "-a", "a//b", &"a".repeat(256), "a/%00", "a%20b"]
    {
        let answer = taffrail_tests::raw::get(&host, &format!("/v2/library/{name}/tags/list"), &line)?;
        ensure!([400, 401, 403, 404].contains(&answer.status), "{name} answered {}", answer.status);
    }
    Ok(())
}

#[test]
fn s_80_a_manifest_has_a_greatest_size_and_one_byte_more_is_413() -> Result<()> {
    const LIMIT: usize = 4 << 20;
    let stage = Stage::set()?;
    let image = Image::unique(&[100])?;
    image.push(&stage.admin, REPOSITORY, "one")?;
    let of_size = |size: usize| -> Result<Vec<u8>> {
        let mut manifest: Value = serde_json::from_slice(&image.manifest)?;
        manifest["annotations"] = json!({"a": ""});
        let spare = size - manifest.to_string().len();
        manifest["annotations"]["a"] = json!("x".repeat(spare));
        Ok(manifest.to_string().into_bytes())
    };
    let largest = of_size(LIMIT)?;
    ensure!(largest.len() == LIMIT);
    put(&stage, "large", OCI_MANIFEST, largest.clone())?.expect(&[201])?;
    ensure!(stage.admin.manifest(REPOSITORY, "large")?.expect(&[200])?.body == largest);
    put(&stage, "larger", OCI_MANIFEST, of_size(LIMIT + 1)?)?.expect(&[413])?;

    // A body without an end is cut off at the limit, not read for ever.
    let token = stage.admin.token(&[&format!("repository:{REPOSITORY}:{PUSH}")])?;
    let mut request = format!(
        "PUT /v2/{REPOSITORY}/manifests/endless HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: {OCI_MANIFEST}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
        stage.scene.server.host()
    )
    .into_bytes();
    for _ in 0..80 {
        request.extend_from_slice(b"10000\r\n");
        request.extend_from_slice(&[b' '; 0x10000]);
        request.extend_from_slice(b"\r\n");
    }
    let answers = taffrail_tests::raw::exchange(&stage.scene.server.host(), &request)?;
    // The answer may be lost to the reset that follows it; another answer would not be.
    ensure!(answers.iter().all(|answer| answer.status == 413), "{answers:?}");
    stage.admin.manifest(REPOSITORY, "endless")?.expect(&[404])?;
    Ok(())
}

#[test]
fn s_81_and_82_what_is_no_manifest_is_refused_soon() -> Result<()> {
    let stage = Stage::set()?;
    let image = Image::unique(&[100])?;
    image.push(&stage.admin, REPOSITORY, "one")?;
    let good: Value = serde_json::from_slice(&image.manifest)?;
    let with = |name: &str, value: Value| {
        let mut bent = good.clone();
        bent[name] = value;
        bent.to_string().into_bytes()
    };
    let mut both = good.clone();
    both["manifests"] = json!([]);
    let duplicates = format!("{{{}\"schemaVersion\":2}}", "\"schemaVersion\":2,".repeat(200_000));
    let odd: Vec<(&str, &str, Vec<u8>)> = vec![
        ("empty", OCI_MANIFEST, Vec::new()),
        ("not JSON", OCI_MANIFEST, b"{".to_vec()),
        ("an array", OCI_MANIFEST, b"[]".to_vec()),
        ("deep", OCI_MANIFEST, [b"[".repeat(10_000), b"]".repeat(10_000)].concat()),
        ("deep objects", OCI_MANIFEST, b"{\"a\":".repeat(10_000)),
        ("many elements", OCI_MANIFEST, format!("{{\"layers\":[{}0]}}", "0,".repeat(1_000_000)).into_bytes()),
        ("many duplicates", OCI_MANIFEST, duplicates.into_bytes()),
        ("an endless number", OCI_MANIFEST, b"{\"schemaVersion\":1e400}".to_vec()),
        ("a lone surrogate", OCI_MANIFEST, b"{\"schemaVersion\":2,\"mediaType\":\"\\ud800\"}".to_vec()),
        ("a byte order mark", OCI_MANIFEST, [b"\xef\xbb\xbf".to_vec(), image.manifest.clone()].concat()),
        ("more after the end", OCI_MANIFEST, [image.manifest.clone(), b"{}".to_vec()].concat()),
        ("invalid UTF-8", OCI_MANIFEST, b"{\"mediaType\":\"\xff\"}".to_vec()),
        ("layers and manifests", OCI_MANIFEST, both.to_string().into_bytes()),
        ("another media type inside", OCI_MANIFEST, with("mediaType", json!(OCI_INDEX))),
        ("an index by name only", OCI_INDEX, image.manifest.clone()),
        (
            "schema 1",
            "application/vnd.docker.distribution.manifest.v1+json",
            br#"{"schemaVersion":1}"#.to_vec(),
        ),
        (
            "schema 1, signed",
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            br#"{"schemaVersion":1}"#.to_vec(),
        ),
        ("no digest", OCI_MANIFEST, with("layers", json!([{"mediaType": "a/b", "size": 1}]))),
        ("a text for layers", OCI_MANIFEST, with("layers", json!("none"))),
        ("version 3", OCI_MANIFEST, with("schemaVersion", json!(3))),
    ];
    for (what, media_type, body) in odd {
        let started = Instant::now();
        let answer = put(&stage, "odd", media_type, body)?;
        let took = started.elapsed();
        ensure!(answer.status == 400, "{what}: answered {}: {}", answer.status, answer.text());
        let code = answer.json()?["errors"][0]["code"].clone();
        ensure!(code == "MANIFEST_INVALID", "{what}: {code}");
        ensure!(took < REFUSAL_MAX, "{what} took {took:?}");
    }
    stage.admin.manifest(REPOSITORY, "odd")?.expect(&[404])?;
    Ok(())
}

#[test]
fn s_83_a_manifest_comes_back_as_it_went_in() -> Result<()> {
    let stage = Stage::set()?;
    let image = Image::unique(&[100])?;
    image.push(&stage.admin, REPOSITORY, "one")?;
    let good: Value = serde_json::from_slice(&image.manifest)?;
    let pretty = serde_json::to_string_pretty(&good)?;
    let (config, layers) = (&good["config"], &good["layers"]);
    let odd_order = format!(
        "\n\t {{ \"annotations\" : {{\"\\u0061\":\"\u{1f6a2} \\u00e9 \u{2028}\"}},\"layers\":{layers} ,\r\n\
         \"config\" :{config},\"schemaVersion\":2 ,\"x-unknown\":[1.0e2,-0.0], \"mediaType\":\"{OCI_MANIFEST}\"}}  \n"
    );
    for body in [pretty.into_bytes(), odd_order.into_bytes()] {
        let digest = sha256(&body);
        let answer = put(&stage, "odd", OCI_MANIFEST, body.clone())?.expect(&[201])?;
        ensure!(answer.header("docker-content-digest") == digest);
        for reference in ["odd", &digest] {
            let back = stage.admin.manifest(REPOSITORY, reference)?.expect(&[200])?;
            ensure!(back.body == body && back.header("docker-content-digest") == digest);
        }
    }
    Ok(())
}

#[test]
fn s_84_and_85_descriptors_are_held_against_what_is_there() -> Result<()> {
    let stage = Stage::set()?;
    let image = Image::unique(&[100])?;
    image.push(&stage.admin, REPOSITORY, "one")?;
    let good: Value = serde_json::from_slice(&image.manifest)?;
    let bent = |change: &dyn Fn(&mut Value)| {
        let mut manifest = good.clone();
        change(&mut manifest["layers"][0]);
        manifest.to_string().into_bytes()
    };
    let size = good["layers"][0]["size"].as_u64().unwrap_or_default();
    let refused: Vec<(&str, Vec<u8>)> = vec![
        ("a negative size", bent(&|layer| layer["size"] = json!(-1))),
        ("a size of 2^63", bent(&|layer| layer["size"] = json!(9_223_372_036_854_775_808_u64))),
        ("a fractional size", bent(&|layer| layer["size"] = json!(1.5))),
        ("one byte less", bent(&|layer| layer["size"] = json!(size - 1))),
        ("one byte more", bent(&|layer| layer["size"] = json!(size + 1))),
        ("an unknown algorithm", bent(&|layer| layer["digest"] = json!(format!("md5:{}", "a".repeat(32))))),
        ("a blob that is not there", bent(&|layer| layer["digest"] = json!(unknown_digest()))),
    ];
    for (what, body) in refused {
        let answer = put(&stage, "odd", OCI_MANIFEST, body)?;
        ensure!([400, 404].contains(&answer.status), "{what}: answered {}: {}", answer.status, answer.text());
    }
    // Naming a layer twice is legal, and so are addresses that nobody fetches.
    let mut twice = good.clone();
    twice["layers"] = json!([good["layers"][0], good["layers"][0]]);
    twice["layers"][0]["urls"] = json!(["http://169.254.169.254/latest/meta-data"]);
    put(&stage, "twice", OCI_MANIFEST, twice.to_string().into_bytes())?.expect(&[201])?;

    // An index of many children, and a chain of indexes, cost what they weigh and no more.
    let child = json!({"mediaType": OCI_MANIFEST, "digest": image.digest(), "size": image.manifest.len()});
    let wide = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": vec![child.clone(); 10_000]});
    let answer = put(&stage, "wide", OCI_INDEX, wide.to_string().into_bytes())?;
    ensure!([201, 400].contains(&answer.status), "10,000 children: answered {}", answer.status);
    let mut link = child;
    for depth in 0..40 {
        let body = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [link]}).to_string();
        let answer = put(&stage, "chain", OCI_INDEX, body.clone().into_bytes())?;
        if answer.status == 400 {
            break;
        }
        ensure!(answer.status == 201, "depth {depth}: answered {}: {}", answer.status, answer.text());
        link = json!({"mediaType": OCI_INDEX, "digest": sha256(body.as_bytes()), "size": body.len()});
    }
    Ok(())
}
