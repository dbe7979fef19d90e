//! S-01 to S-07 with the real key: what is refused although its signature is good, or although it looks like one of ours.

use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use taffrail_core::identity::{Epoch, Subject};
use taffrail_core::project::ProjectId;
use taffrail_core::token::claims::{Access, Tokens};
use taffrail_core::token::keys::Keyset;
use taffrail_core::user::UserId;
use taffrail_distribution::access::Action;
use tempfile::TempDir;

use crate::world::{SteppedClock, context};

/// As long as clocks may differ, in seconds.
const LEEWAY_SECS: i64 = 60;

struct Mint {
    tokens: Tokens,
    clock: Arc<SteppedClock>,
    key: EcdsaKeyPair,
    header: Value,
    claims: Value,
    folder: TempDir,
}

impl Mint {
    /// A token service, its key, and header and claims of a good token of it.
    fn new() -> Mint {
        let folder = TempDir::new().unwrap();
        let (context, clock) = context(3);
        let keys = Keyset::load_or_make(folder.path()).unwrap();
        let document = std::fs::read(folder.path().join("token-signing-key.p8")).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &document).unwrap();
        let tokens = Tokens::new(keys, context, "https://registry.example");
        let access = vec![Access::repository("pa/app", ProjectId(7), &[Action::Pull, Action::Push])];
        let issued = tokens.issue(&Subject::User(UserId(5)), Epoch::NONE, access).unwrap();
        let parts: Vec<&str> = issued.token.split('.').collect();
        let decode = |part: &str| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap();
        let (header, claims) = (decode(parts[0]), decode(parts[1]));
        Mint { tokens, clock, key, header, claims, folder }
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        self.sign_text(&header.to_string(), &claims.to_string())
    }

    fn sign_text(&self, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }

    fn is_good(&self, header: &Value, claims: &Value) -> bool {
        self.tokens.verify(&self.sign(header, claims)).is_some()
    }

    fn with_claim(&self, name: &str, value: Value) -> Value {
        let mut claims = self.claims.clone();
        claims[name] = value;
        claims
    }

    fn with_header(&self, name: &str, value: Value) -> Value {
        let mut header = self.header.clone();
        header[name] = value;
        header
    }

    fn now_secs(&self) -> i64 {
        self.claims["iat"].as_i64().unwrap()
    }
}

fn without(object: &Value, name: &str) -> Value {
    let mut object = object.clone();
    object.as_object_mut().unwrap().remove(name);
    object
}

#[test]
fn a_token_says_what_it_was_made_for() {
    let mint = Mint::new();
    let token = mint.tokens.verify(&mint.sign(&mint.header, &mint.claims)).unwrap();
    assert_eq!(token.subject, Subject::User(UserId(5)));
    assert!(
        token.names("pa/app", ProjectId(7), Action::Pull)
            && token.names("pa/app", ProjectId(7), Action::Push)
    );
    assert!(!token.names("pa/app", ProjectId(7), Action::Delete));
    assert!(!token.names("pa/app", ProjectId(8), Action::Pull), "a project made anew is another one (S-08)");
    for other in ["pa/app2", "pa/ap", "pa", "pa/app/", "PA/app", "pa/app/x", ""] {
        assert!(!token.names(other, ProjectId(7), Action::Pull), "{other} (S-10)");
    }
    assert!(!token.names_catalog());
    for claim in ["iss", "sub", "aud", "exp", "nbf", "iat", "jti", "access"] {
        assert!(mint.claims.get(claim).is_some(), "no {claim}");
    }
    assert_eq!(mint.claims["exp"].as_i64().unwrap() - mint.now_secs(), 300);
    assert!(mint.claims["jti"].as_str().unwrap().len() >= 32, "128 random bits");
}

#[test]
fn s_07_every_claim_is_demanded_in_its_type() {
    let mint = Mint::new();
    assert!(mint.is_good(&mint.header, &mint.claims), "the control is refused");
    let names: Vec<String> = mint.claims.as_object().unwrap().keys().cloned().collect();
    let odd =
        [json!(null), json!(-1), json!(1e308), json!(1.5), json!("x"), json!({}), json!(true), json!([[]])];
    let mut variants = 0;
    for name in &names {
        assert!(!mint.is_good(&mint.header, &without(&mint.claims, name)), "without {name}");
        variants += 1;
        for value in &odd {
            let good_by_chance = name == "jti" && value.is_string();
            if !good_by_chance {
                assert!(
                    !mint.is_good(&mint.header, &mint.with_claim(name, value.clone())),
                    "{name} = {value}"
                );
                variants += 1;
            }
        }
    }
    let now = mint.now_secs();
    for (name, value) in [
        ("iss", json!("https://registry.example.evil")),
        ("iss", json!("")),
        ("aud", json!("another-registry")),
        ("aud", json!(["another-registry"])),
        ("aud", json!([])),
        ("sub", json!("u:0")),
        ("sub", json!("u:-5")),
        ("sub", json!("u:")),
        ("sub", json!("5")),
        ("sub", json!("r:5")),
        ("sub", json!("u:99999999999999999999")),
        ("exp", json!(now.to_string())),
        ("exp", json!(i64::MAX)),
        ("exp", json!(u64::MAX)),
        ("exp", json!(now + 86_400)),
        ("nbf", json!(now + LEEWAY_SECS + 1)),
        ("nbf", json!(i64::MAX)),
        ("iat", json!(i64::MIN)),
        ("iat", json!(now + LEEWAY_SECS + 1)),
        ("jti", json!("")),
        ("access", json!([{"type": "repository"}])),
        ("access", json!([{"type": "repository", "name": "pa/app", "actions": "pull"}])),
        ("access", json!([{"type": "repository", "name": "pa/app", "actions": [7]}])),
        ("access", json!("repository:pa/app:pull")),
        ("unheard-of", json!(1)),
    ] {
        assert!(!mint.is_good(&mint.header, &mint.with_claim(name, value.clone())), "{name} = {value}");
        variants += 1;
    }
    for text in ["", "null", "[]", "{}", "7", "\"x\"", "{", &format!("{} ", "[".repeat(5_000))] {
        assert!(mint.tokens.verify(&mint.sign_text(&mint.header.to_string(), text)).is_none(), "{text}");
        variants += 1;
    }
    // Which of two equal members counts is a matter of taste among parsers: neither does.
    let twice = mint.claims.to_string().replacen('{', "{\"sub\":\"u:1\",", 1);
    assert!(mint.tokens.verify(&mint.sign_text(&mint.header.to_string(), &twice)).is_none());
    assert!(variants >= 40, "only {variants} variants");
}

#[test]
fn s_07_the_leeway_is_sixty_seconds_to_the_second() {
    let mint = Mint::new();
    let now = mint.now_secs();
    let mut early = mint.with_claim("nbf", json!(now + LEEWAY_SECS));
    assert!(mint.is_good(&mint.header, &early));
    early["nbf"] = json!(now + LEEWAY_SECS + 1);
    assert!(!mint.is_good(&mint.header, &early));

    let cached = mint.sign(&mint.header, &mint.claims);
    assert!(mint.tokens.verify(&cached).is_some());
    mint.clock.advance_secs(300 + LEEWAY_SECS);
    assert!(mint.tokens.verify(&cached).is_some(), "from the cache");
    assert!(mint.is_good(&mint.header, &mint.claims), "anew");
    mint.clock.advance_secs(1);
    assert!(mint.tokens.verify(&cached).is_none(), "from the cache");
    assert!(!mint.is_good(&mint.header, &mint.claims), "anew");
}

#[test]
fn s_01_to_05_a_header_names_one_of_our_keys_and_nothing_else() {
    let mint = Mint::new();
    let own_key = json!({"kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA"});
    let mut headers = vec![
        mint.with_header("jwk", own_key),
        mint.with_header("jku", json!("http://127.0.0.1:1/keys")),
        mint.with_header("x5u", json!("http://127.0.0.1:1/keys")),
        mint.with_header("x5c", json!(["AAAA"])),
        mint.with_header("crit", json!(["exp"])),
        mint.with_header("b64", json!(false)),
        mint.with_header("zip", json!("DEF")),
        mint.with_header("p2c", json!(2_147_483_647)),
        mint.with_header("enc", json!("A128GCM")),
        mint.with_header("typ", json!("at+jwt")),
        mint.with_header("typ", json!(7)),
        without(&mint.header, "alg"),
        without(&mint.header, "kid"),
    ];
    for algorithm in [
        "none", "None", "NONE", "", "es256", "ES384", "ES512", "HS256", "HS384", "HS512", "RS256", "PS256",
        "EdDSA",
    ] {
        headers.push(mint.with_header("alg", json!(algorithm)));
    }
    for kid in ["", "unknown", "../../etc/passwd", "' OR 1=1--", &"k".repeat(9 << 10)] {
        headers.push(mint.with_header("kid", json!(kid)));
    }
    headers.push(mint.with_header("kid", json!(null)));
    headers.push(mint.with_header("kid", json!([mint.header["kid"]])));
    for header in headers {
        let shown: String = header.to_string().chars().take(200).collect();
        assert!(!mint.is_good(&header, &mint.claims), "{shown}");
    }
    let twice = mint.header.to_string().replacen('{', "{\"alg\":\"none\",", 1);
    assert!(mint.tokens.verify(&mint.sign_text(&twice, &mint.claims.to_string())).is_none());
}

#[test]
fn s_03_our_public_key_is_no_secret_to_sign_with() {
    let mint = Mint::new();
    let jwks = serde_json::to_value(mint.tokens.keys().public()).unwrap();
    let point = mint.key.public_key().as_ref().to_vec();
    let secrets =
        [jwks[0].to_string().into_bytes(), jwks.to_string().into_bytes(), point[1..].to_vec(), point];
    for secret in secrets {
        for (name, algorithm) in [
            ("HS256", aws_lc_rs::hmac::HMAC_SHA256),
            ("HS384", aws_lc_rs::hmac::HMAC_SHA384),
            ("HS512", aws_lc_rs::hmac::HMAC_SHA512),
        ] {
            let header = mint.with_header("alg", json!(name)).to_string();
            let signed = format!(
                "{}.{}",
                URL_SAFE_NO_PAD.encode(header),
                URL_SAFE_NO_PAD.encode(mint.claims.to_string())
            );
            let tag =
                aws_lc_rs::hmac::sign(&aws_lc_rs::hmac::Key::new(algorithm, &secret), signed.as_bytes());
            let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag.as_ref()));
            assert!(mint.tokens.verify(&token).is_none(), "{name}");
        }
    }
}

#[test]
fn s_05_and_06_odd_envelopes_are_refused() {
    let mint = Mint::new();
    let good = mint.sign(&mint.header, &mint.claims);
    assert!(mint.tokens.verify(&good).is_some(), "the control is refused");
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let (header, claims) = signed.split_once('.').unwrap();
    let json = json!({"payload": claims, "protected": header, "signature": signature});
    let zeros = URL_SAFE_NO_PAD.encode([0; 64]);
    for odd in [
        String::new(),
        "...".to_owned(),
        json.to_string(),
        format!("{good}.AAAA.BBBB"),
        format!("{good}."),
        format!("{good}="),
        format!(" {good}"),
        format!("{good}\n"),
        format!("{signed}."),
        signed.to_owned(),
        format!("{signed}.{zeros}"),
        format!("{signed}.{signature}A"),
        format!("{signed}.{}", &signature[..signature.len() - 2]),
        format!("{claims}.{header}.{signature}"),
        format!(".{claims}.{signature}"),
        format!("{header}..{signature}"),
        ".".repeat(30 << 10),
        "A".repeat(1 << 20),
    ] {
        let shown: String = odd.chars().take(80).collect();
        assert!(mint.tokens.verify(&odd).is_none(), "{shown}");
    }
    // Every single character that is changed breaks it.
    for place in (0..good.len()).step_by(7) {
        let mut bent = good.clone().into_bytes();
        bent[place] = if bent[place] == b'A' { b'B' } else { b'A' };
        let bent = String::from_utf8(bent).unwrap();
        if bent != good {
            assert!(mint.tokens.verify(&bent).is_none(), "character {place}");
        }
    }
}

#[test]
fn tokens_of_the_key_before_are_good_until_it_goes() {
    let mint = Mint::new();
    let old = mint.sign(&mint.header, &mint.claims);
    let folder = mint.folder.path();
    let (current, previous) =
        (folder.join("token-signing-key.p8"), folder.join("token-signing-key.previous.p8"));
    std::fs::rename(&current, &previous).unwrap();
    let open =
        || Tokens::new(Keyset::load_or_make(folder).unwrap(), context(4).0, "https://registry.example");
    let both = open();
    assert_eq!(both.keys().public().len(), 2);
    let new = both.issue(&Subject::Anonymous, Epoch::NONE, Vec::new()).unwrap().token;
    assert!(both.verify(&old).is_some() && both.verify(&new).is_some());
    assert!(mint.tokens.verify(&new).is_none(), "signed with the new key");
    // S-04: a signature counts for the key that it names, not for another of ours.
    let mut header = mint.header.clone();
    let names = serde_json::to_value(both.keys().public()).unwrap();
    let others = names.as_array().unwrap().iter().map(|key| &key["kid"]).filter(|kid| **kid != header["kid"]);
    let others: Vec<_> = others.cloned().collect();
    assert_eq!(others.len(), 1);
    header["kid"] = others[0].clone();
    assert!(both.verify(&mint.sign(&header, &mint.claims)).is_none());

    std::fs::remove_file(&previous).unwrap();
    let one = open();
    assert!(one.verify(&old).is_none() && one.verify(&new).is_some());
}

#[test]
fn a_token_of_another_registry_is_none_of_ours() {
    let (ours, theirs) = (Mint::new(), Mint::new());
    assert!(ours.tokens.verify(&theirs.sign(&theirs.header, &theirs.claims)).is_none(), "their key");
    assert!(ours.tokens.verify(&theirs.sign(&ours.header, &ours.claims)).is_none(), "our name on their key");
}
