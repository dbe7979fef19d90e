//! S-01 to S-12: tokens that were forged, bent, or are meant for something else.

use std::net::TcpListener;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::Method;
use serde_json::{Value, json};
use taffrail_tests::http::{Answer, Extra, Registry};
use taffrail_tests::scene::{DEVELOPER, PRIVATE};

use super::{OTHER, Stage, own_repository, secret_repository};

fn encode(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

fn decode(part: &str) -> Result<Value> {
    Ok(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part)?)?)
}

/// The three parts of a real token of the developer, for pulls from the secret repository.
fn real_token(stage: &Stage) -> Result<(String, Value, Value, String)> {
    let token = stage.insider.token(&[&format!("repository:{}:pull", secret_repository())])?;
    let parts: Vec<&str> = token.split('.').collect();
    ensure!(parts.len() == 3, "not a JWS in compact form");
    Ok((token.clone(), decode(parts[0])?, decode(parts[1])?, parts[2].to_owned()))
}

fn use_token(stage: &Stage, token: &str) -> Result<Answer> {
    let path = format!("/v2/{}/manifests/one", secret_repository());
    let extra = Extra::default().header("authorization", format!("Bearer {token}"));
    stage.scene.server.client(None)?.bare(&Method::GET, &path, &extra)
}

fn refused(stage: &Stage, what: &str, token: &str) -> Result<()> {
    let answer = use_token(stage, token)?;
    ensure!(answer.status == 401, "{what}: answered {}: {}", answer.status, answer.text());
    let challenge = answer.header("www-authenticate");
    ensure!(challenge.starts_with("Bearer "), "{what}: the challenge is {challenge:?}");
    Ok(())
}

#[test]
fn s_01_keys_that_a_token_brings_along_are_ignored() -> Result<()> {
    let stage = Stage::set()?;
    let (token, header, claims, signature) = real_token(&stage)?;
    ensure!(use_token(&stage, &token)?.status == 200, "the real token does not work");
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let url = format!("http://{}/keys", listener.local_addr()?);
    let own_key = json!({"kty": "EC", "crv": "P-256", "x": URL_SAFE_NO_PAD.encode([7; 32]), "y": URL_SAFE_NO_PAD.encode([9; 32])});
    for (name, value) in
        [("jwk", own_key), ("jku", json!(url)), ("x5u", json!(url)), ("x5c", json!(["AAAA"]))]
    {
        let mut bent = header.clone();
        bent[name] = value;
        refused(&stage, name, &format!("{}.{}.{signature}", encode(&bent), encode(&claims)))?;
    }
    ensure!(listener.accept().is_err(), "the server went to fetch a key");
    Ok(())
}

#[test]
fn s_02_to_04_no_other_algorithm_and_no_other_key() -> Result<()> {
    let stage = Stage::set()?;
    let (_, header, claims, signature) = real_token(&stage)?;
    for algorithm in ["none", "None", "NONE", "", "HS256", "HS384", "HS512", "RS256", "ES384", "EdDSA"] {
        for signature in ["", signature.as_str(), &URL_SAFE_NO_PAD.encode([0; 64])] {
            let mut bent = header.clone();
            bent["alg"] = json!(algorithm);
            refused(&stage, algorithm, &format!("{}.{}.{signature}", encode(&bent), encode(&claims)))?;
        }
    }
    let mut bent = header.clone();
    if let Some(map) = bent.as_object_mut() {
        map.remove("alg");
    }
    refused(&stage, "no alg", &format!("{}.{}.{signature}", encode(&bent), encode(&claims)))?;
    let kids = ["unknown", "", "../../etc/passwd", "' OR 1=1--", &"k".repeat(10 << 10)];
    for kid in kids {
        let mut bent = header.clone();
        bent["kid"] = json!(kid);
        refused(&stage, "kid", &format!("{}.{}.{signature}", encode(&bent), encode(&claims)))?;
    }
    Ok(())
}

#[test]
fn s_05_and_06_odd_envelopes_are_refused_at_once() -> Result<()> {
    let stage = Stage::set()?;
    let (token, header, claims, signature) = real_token(&stage)?;
    let (first, second) = (encode(&header), encode(&claims));
    let two_signatures = json!({
        "payload": second,
        "signatures": [{"protected": first, "signature": signature}, {"protected": first, "signature": signature}],
    });
    let bent = |more: Value| -> String {
        let mut header = header.clone();
        for (name, value) in more.as_object().cloned().unwrap_or_default() {
            header[&name] = value;
        }
        format!("{}.{second}.{signature}", encode(&header))
    };
    let odd = [
        two_signatures.to_string(),
        format!("{token}.AAAA.BBBB"),
        format!("{first}.{second}"),
        format!("{first}.{second}."),
        format!("{token}."),
        bent(json!({"p2c": 2_147_483_647_u32, "alg": "PBES2-HS256+A128KW", "enc": "A128GCM"})),
        bent(json!({"zip": "DEF"})),
        bent(json!({"b64": false, "crit": ["b64"]})),
        bent(json!({"crit": ["unheard-of"], "unheard-of": true})),
        ".".repeat(30 << 10),
        "A".repeat(20 << 10),
    ];
    for token in odd {
        let started = Instant::now();
        let extra = Extra::default().header("authorization", format!("Bearer {token}"));
        let path = format!("/v2/{}/manifests/one", secret_repository());
        let answer = stage.scene.server.client(None)?.bare(&Method::GET, &path, &extra)?;
        let shown: String = token.chars().take(60).collect();
        ensure!([400, 401, 431].contains(&answer.status), "{shown}: answered {}", answer.status);
        ensure!(started.elapsed().as_secs() < 2, "{shown} took {:?}", started.elapsed());
    }
    Ok(())
}

#[test]
fn s_07_a_claim_that_was_changed_breaks_the_signature() -> Result<()> {
    let stage = Stage::set()?;
    let (_, header, claims, signature) = real_token(&stage)?;
    let names: Vec<String> = claims.as_object().context("claims")?.keys().cloned().collect();
    for needed in ["iss", "sub", "aud", "exp", "iat", "access"] {
        ensure!(names.iter().any(|name| name == needed), "a token without {needed}: {names:?}");
    }
    let mut variants = 0;
    for name in &names {
        let odd = [
            json!(null),
            json!(-1),
            json!(1e308),
            json!("x"),
            json!([]),
            json!({}),
            json!(i64::MAX),
            json!(true),
        ];
        for value in odd {
            let mut bent = claims.clone();
            bent[name] = value;
            refused(&stage, name, &format!("{}.{}.{signature}", encode(&header), encode(&bent)))?;
            variants += 1;
        }
        let mut bent = claims.clone();
        if let Some(map) = bent.as_object_mut() {
            map.remove(name);
        }
        refused(&stage, name, &format!("{}.{}.{signature}", encode(&header), encode(&bent)))?;
        variants += 1;
    }
    ensure!(variants >= 40, "only {variants} variants");
    Ok(())
}

#[test]
fn s_08_a_token_does_not_outlive_its_project() -> Result<()> {
    let stage = Stage::set()?;
    let name = "short-lived";
    taffrail_tests::scene::create_project(&stage.admin, name, false)?;
    let token = stage.admin.token(&[&format!("repository:{name}/app:pull,push")])?;
    let send = |method: Method, path: String| {
        let extra = Extra::default().header("authorization", format!("Bearer {token}"));
        stage.scene.server.client(None)?.bare(&method, &path, &extra)
    };
    ensure!(send(Method::POST, format!("/v2/{name}/app/blobs/uploads/"))?.status == 202);
    stage.admin.api(&Method::DELETE, &format!("/projects/{name}"), None)?.expect(&[200])?;
    taffrail_tests::scene::create_project(&stage.outsider, name, false)?;
    let image = taffrail_tests::images::Image::unique(&[100])?;
    image.push(&stage.outsider, &format!("{name}/app"), "one")?;
    for (method, path) in [
        (Method::GET, format!("/v2/{name}/app/manifests/one")),
        (Method::GET, format!("/v2/{name}/app/blobs/{}", image.blobs()[0])),
        (Method::POST, format!("/v2/{name}/app/blobs/uploads/")),
        (Method::POST, format!("/v2/{name}/app/blobs/uploads/?mount={}&from={name}/app", image.blobs()[0])),
    ] {
        let answer = send(method.clone(), path.clone())?;
        ensure!([401, 403, 404].contains(&answer.status), "{method} {path} answered {}", answer.status);
    }
    Ok(())
}

#[test]
fn s_09_a_token_to_push_does_not_delete() -> Result<()> {
    let stage = Stage::set()?;
    let repository = secret_repository();
    let token = stage.admin.token(&[&format!("repository:{repository}:pull,push")])?;
    let bearer = Extra::default().header("authorization", format!("Bearer {token}"));
    let anonymous = stage.scene.server.client(None)?;
    for path in [
        format!("/v2/{repository}/manifests/one"),
        format!("/v2/{repository}/manifests/{}", stage.secret.digest()),
        format!("/v2/{repository}/blobs/{}", stage.secret_layer()),
    ] {
        let answer = anonymous.bare(&Method::DELETE, &path, &bearer)?;
        ensure!([401, 403].contains(&answer.status), "DELETE {path} answered {}", answer.status);
        ensure!(anonymous.bare(&Method::GET, &path, &bearer)?.status == 200, "{path} is gone");
    }
    // One's own upload one may cancel.
    let begun = anonymous
        .bare(&Method::POST, &format!("/v2/{repository}/blobs/uploads/"), &bearer)?
        .expect(&[202])?;
    anonymous.bare(&Method::DELETE, &anonymous.location(&begun)?, &bearer)?.expect(&[204])?;
    Ok(())
}

#[test]
fn s_10_a_token_is_for_its_repository_to_the_letter() -> Result<()> {
    let stage = Stage::set()?;
    stage.secret.push(&stage.insider, &format!("{PRIVATE}/secret2"), "one")?;
    stage.secret.push(&stage.insider, &format!("{PRIVATE}/secret/deeper"), "one")?;
    let token = stage.insider.token(&[&format!("repository:{}:pull", secret_repository())])?;
    let line = format!("Authorization: Bearer {token}\r\n");
    let host = stage.scene.server.host();
    let project = PRIVATE;
    for name in [
        format!("{project}/secret2"),
        format!("{project}/secret/deeper"),
        format!("{project}/secret/"),
        format!("{project}//secret"),
        project.to_uppercase() + "/secret",
        format!("{project}%2Fsecret2"),
        format!("{project}/secret%00"),
        format!("{project}/secret%2F..%2Fsecret2"),
        format!("{project}/secret/../secret2"),
        format!("{project}/secret2%20"),
    ] {
        let answer = taffrail_tests::raw::get(&host, &format!("/v2/{name}/manifests/one"), &line)?;
        ensure!([400, 401, 403, 404].contains(&answer.status), "{name}: answered {}", answer.status);
        ensure!(answer.body != stage.secret.manifest, "{name} gave the manifest");
    }
    Ok(())
}

#[test]
fn s_11_odd_scopes_give_what_one_has_and_no_more() -> Result<()> {
    let stage = Stage::set()?;
    let access = |registry: &Registry, scopes: &[&str]| -> Result<Value> {
        let token = registry.token(scopes)?;
        ensure!(token.len() <= 8 << 10, "a token of {} bytes", token.len());
        let claims = decode(token.split('.').nth(1).context("claims")?)?;
        Ok(claims["access"].clone())
    };
    let secret = format!("repository:{}:pull,push,delete", secret_repository());
    let given = access(&stage.outsider, &[&secret])?;
    let actions = given.as_array().map_or(0, |list| {
        list.iter().filter_map(|entry| entry["actions"].as_array()).map(Vec::len).sum::<usize>()
    });
    ensure!(actions == 0, "the outsider got {given}");
    for odd in [
        "*",
        "repository::pull",
        "repository:harbor-side/*:pull",
        "repository:*:*",
        "registry:catalog:*",
        "repository:127.0.0.1:5000/harbor-side/secret:pull",
        "repository:harbor-side/secret:*",
        "nonsense",
        "",
        "repository:a:b:c:d:e",
    ] {
        let given = access(&stage.outsider, &[odd])?.to_string();
        ensure!(!given.contains("secret") || !given.contains("pull"), "{odd:?} gave {given}");
    }
    // Space-joined and repeated are the same.
    let own = format!("repository:{}:pull", own_repository());
    let joined = access(&stage.outsider, &[&format!("{own} {secret}")])?;
    let repeated = access(&stage.outsider, &[&own, &secret])?;
    ensure!(joined == repeated && joined.to_string().contains("pull"), "{joined} and {repeated}");

    let many: Vec<String> = (0..1_000).map(|number| format!("repository:{OTHER}/r{number}:pull")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let error = stage.outsider.token(&many).err().context("a thousand scopes were taken")?;
    let text = format!("{error:#}");
    ensure!(text.contains("answered 400") || text.contains("answered 414"), "{text}");
    Ok(())
}

#[test]
fn s_12_a_token_for_the_registry_does_not_open_the_api() -> Result<()> {
    let stage = Stage::set()?;
    let token = stage.admin.token(&["repository:library/x:pull,push", "registry:catalog:*"])?;
    let bearer = Extra::default().header("authorization", format!("Bearer {token}"));
    let anonymous = stage.scene.server.client(None)?;
    for path in ["/api/v2.0/users/current", "/api/v2.0/users"] {
        let answer = anonymous.bare(&Method::GET, path, &bearer)?;
        ensure!([401, 403, 404, 405].contains(&answer.status), "{path} answered {}", answer.status);
    }
    // And a name with a wrong password gets no token, whoever's it is.
    for name in [DEVELOPER.0, "nobody-at-all"] {
        let client = stage.scene.server.client(Some((name, "Wrong-Password-1")))?;
        let error =
            client.token(&["repository:library/x:pull"]).err().context("a token for a wrong password")?;
        ensure!(format!("{error:#}").contains("answered 401"), "{error:#}");
    }
    Ok(())
}
