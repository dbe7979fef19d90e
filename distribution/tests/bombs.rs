//! Documents and numbers made to exhaust memory (S-52, S-81, S-85). What is asserted is what was allocated, not the time:
//! this binary counts every allocation, and therefore has one test only.

use peak_alloc::PeakAlloc;
use taffrail_distribution::manifest::{Manifest, OCI_IMAGE, OCI_INDEX};
use taffrail_distribution::range;
use taffrail_distribution::route::Route;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const MIB: usize = 1 << 20;

/// Bytes allocated at most at one time by `work`.
fn peak_bytes<T>(work: impl FnOnce() -> T) -> (usize, T) {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let result = work();
    (ALLOCATOR.peak_usage().saturating_sub(before), result)
}

/// As long as a manifest may be.
fn repeated(head: &str, unit: &str, tail: &str) -> Vec<u8> {
    let mut text = head.to_owned();
    while text.len() + unit.len() + tail.len() <= 4 * MIB {
        text.push_str(unit);
    }
    text.push_str(tail);
    text.into_bytes()
}

fn numbered(head: &str, unit: impl Fn(usize) -> String, tail: &str) -> Vec<u8> {
    let mut text = head.to_owned();
    for number in 0.. {
        let unit = unit(number);
        if text.len() + unit.len() + tail.len() > 4 * MIB {
            break;
        }
        text.push_str(&unit);
    }
    text.push_str(tail);
    text.into_bytes()
}

#[test]
fn nothing_that_a_client_sends_makes_the_parsers_allocate_much_more_than_it_sent() {
    let descriptor = |number: usize| {
        format!("{{\"mediaType\":\"{OCI_IMAGE}\",\"digest\":\"sha256:{number:064x}\",\"size\":1}},")
    };
    let last = "{\"mediaType\":\"x\",\"digest\":\"sha256:\",\"size\":1}]}";
    let index = format!("{{\"schemaVersion\":2,\"mediaType\":\"{OCI_INDEX}\",\"manifests\":[");
    for (what, document) in [
        ("arrays inside arrays", repeated("{\"x\":", "[", "")),
        ("objects inside objects", repeated("", "{\"x\":", "")),
        ("2 million elements", repeated("{\"x\":[", "0,", "0]}")),
        ("2 million empty arrays", repeated("{\"x\":[", "[],", "[]]}")),
        ("a key 700,000 times", repeated("{", "\"a\":0,", "\"a\":0}")),
        ("as many keys as fit", numbered("{", |number| format!("\"{number:x}\":0,"), "\"z\":0}")),
        ("as many annotations as fit", {
            numbered("{\"annotations\":{", |number| format!("\"{number:x}\":\"\","), "\"z\":\"\"}}")
        }),
        ("one key of 4 MiB", repeated("{\"", "k", "\":0}")),
        ("one string of escapes", repeated("{\"x\":\"", "\\u0041", "\"}")),
        ("a digit 4 million times", repeated("{\"x\":", "9", "}")),
        ("lone surrogates", repeated("{\"x\":\"", "\\ud800", "\"}")),
        ("white space", repeated("{", " ", "}")),
        ("as many descriptors as fit", numbered(&index, descriptor, last)),
        ("one descriptor again and again", repeated(&index, &descriptor(1), last)),
        (
            "data in a descriptor",
            repeated("{\"config\":{\"digest\":\"sha256:\",\"size\":1,\"data\":\"", "A", "\"}}"),
        ),
    ] {
        let (peak, result) = peak_bytes(|| Manifest::parse(&document, Some(OCI_INDEX), &[]));
        let kib = peak / 1024;
        println!("{what}: {} KiB sent, {kib} KiB allocated", document.len() / 1024);
        assert!(result.is_err(), "{what}");
        assert!(peak <= 32 * MIB, "{what}: {kib} KiB");
    }

    // What is fine costs little, too.
    let mut children: Vec<String> = (0..16_000).map(descriptor).collect();
    if let Some(last) = children.last_mut() {
        last.pop();
    }
    let document = format!("{index}{}]}}", children.concat());
    let (peak, result) = peak_bytes(|| Manifest::parse(document.as_bytes(), Some(OCI_INDEX), &[]));
    println!(
        "an index of 16,000 children: {} KiB sent, {} KiB allocated",
        document.len() / 1024,
        peak / 1024
    );
    assert_eq!(result.map(|manifest| manifest.references.len()), Ok(16_000));
    assert!(peak <= 32 * MIB);

    for (what, header) in [
        ("ranges", format!("bytes={}0-", "0-,".repeat(100_000))),
        ("digits", format!("bytes={}-", "9".repeat(1_000_000))),
        ("commas", format!("bytes={}", ",".repeat(1_000_000))),
    ] {
        let (peak, _) = peak_bytes(|| range::wanted(&header, 1 << 40));
        assert!(peak <= MIB, "{what}: {peak} bytes");
        let (peak, _) = peak_bytes(|| range::of_upload(&header));
        assert!(peak <= MIB, "{what}: {peak} bytes");
    }
    for (what, path) in [
        ("parts", format!("/v2/{}tags/list", "a/".repeat(500_000))),
        ("percents", format!("/v2/a/manifests/{}", "%41".repeat(300_000))),
        ("slashes", "/".repeat(1_000_000)),
    ] {
        let (peak, result) = peak_bytes(|| Route::parse(&path));
        assert!(result.is_err(), "{what}");
        assert!(peak <= MIB, "{what}: {peak} bytes");
    }
}
