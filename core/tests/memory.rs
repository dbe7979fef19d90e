//! What logins cost (S-20, S-23). What is asserted is what was hashed and allocated, not the time: this binary counts every
//! allocation, and therefore has one test only.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

#[path = "auth/harbour.rs"]
#[expect(dead_code, reason = "shared with the tests of who may do what")]
mod harbour;
#[path = "auth/world.rs"]
#[expect(dead_code, reason = "shared with the tests of who may do what")]
mod world;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use http::{HeaderMap, header};
use peak_alloc::PeakAlloc;
use taffrail_core::identity::throttle::Throttle;
use taffrail_distribution::access::{AccessError, ClientAddress};

use harbour::{HASHES_MAX, Harbour, basic, bearer};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const MIB: usize = 1 << 20;

/// What one password takes while it is hashed: OWASP's minimum for argon2id.
const HASH_BYTES: usize = 19 * MIB;

/// What else a login may take, and by how much two of them may differ: buffers of the database and of the runtime.
const SLACK_BYTES: usize = 256 << 10;

const PASSWORD: &str = "Mainsail-and-foresail-7";

/// Bytes that were allocated at most at one time while `work` ran, beyond those at its beginning.
async fn peak_bytes<T>(work: impl Future<Output = T>) -> (usize, T) {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let outcome = work.await;
    (ALLOCATOR.peak_usage().saturating_sub(before), outcome)
}

async fn identify(harbour: &Harbour, value: header::HeaderValue, from: u32) -> Result<(), AccessError> {
    let mut headers = HeaderMap::new();
    headers.insert(header::AUTHORIZATION, value);
    let address = ClientAddress(IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + from)));
    harbour.access.identify(&headers, Some(address)).await.map(|_| ())
}

/// The text with its character at `index` replaced by another of the same alphabet.
fn bent(text: &str, index: usize) -> String {
    let mut bytes = text.as_bytes().to_vec();
    bytes[index] = if bytes[index] == b'A' { b'B' } else { b'A' };
    String::from_utf8(bytes).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s_20_and_23_a_login_costs_the_same_wherever_it_is_wrong_and_memory_is_bounded() {
    let harbour = Arc::new(Harbour::open().await);
    harbour.user("alice", PASSWORD).await;
    wrong_secrets_cost_the_same(&harbour).await;
    wrong_tokens_cost_the_same(&harbour).await;
    logins_at_once_take_the_memory_of_those_that_are_hashed(&harbour).await;
    names_that_were_tried_are_forgotten();
}

/// S-20: at whichever byte a password is wrong, and whether anybody has the name, one password is hashed, in the same memory.
async fn wrong_secrets_cost_the_same(harbour: &Harbour) {
    let last = PASSWORD.len() - 1;
    let mut peaks = Vec::new();
    for (number, (name, given)) in [
        ("alice", bent(PASSWORD, 0)),
        ("alice", bent(PASSWORD, last)),
        ("alice", PASSWORD[..last].to_owned()),
        ("nobody-at-all", PASSWORD.to_owned()),
    ]
    .into_iter()
    .enumerate()
    {
        let hashes = harbour.core.password_hashes();
        let from = u32::try_from(number).unwrap();
        let (peak, refused) = peak_bytes(identify(harbour, basic(name, &given), from)).await;
        assert!(matches!(refused, Err(AccessError::Unauthenticated { .. })), "{refused:?}");
        assert_eq!(harbour.core.password_hashes() - hashes, 1, "{name}: {given}");
        peaks.push(peak);
    }
    for peak in &peaks {
        assert!((HASH_BYTES..HASH_BYTES + SLACK_BYTES).contains(peak), "{peaks:?}");
    }
}

/// S-20: a signature that is wrong at its first byte is checked like one that is wrong at its last.
async fn wrong_tokens_cost_the_same(harbour: &Harbour) {
    let token = harbour.token(Some(("alice", PASSWORD)), "").await;
    let signature = token.rfind('.').unwrap() + 1;
    let hashes = harbour.core.password_hashes();
    // The last character of all holds bits that stand for nothing, and must be 0.
    for index in [signature, token.len() - 2] {
        let (peak, refused) = peak_bytes(identify(harbour, bearer(&bent(&token, index)), 0)).await;
        assert!(matches!(refused, Err(AccessError::Unauthenticated { .. })), "{refused:?}");
        assert!(peak < SLACK_BYTES, "{peak} bytes");
    }
    identify(harbour, bearer(&token), 0).await.unwrap();
    assert_eq!(harbour.core.password_hashes(), hashes);
}

/// S-23: of many logins at once as many take the memory of a hash as may be hashed at once, whatever names they bring.
async fn logins_at_once_take_the_memory_of_those_that_are_hashed(harbour: &Arc<Harbour>) {
    const LOGINS: u32 = 200;
    let (peak, outcomes) = peak_bytes(async {
        let logins: Vec<_> = (0..LOGINS)
            .map(|number| {
                let harbour = Arc::clone(harbour);
                let name = format!("stranger{number}");
                tokio::spawn(
                    async move { identify(&harbour, basic(&name, "Wrong-Pass-1"), 100 + number).await },
                )
            })
            .collect();
        let mut refused = 0;
        for login in logins {
            // Those that waited too long for their turn are told to come back.
            refused += u32::from(matches!(
                login.await.unwrap(),
                Err(AccessError::Unauthenticated { .. } | AccessError::Unavailable)
            ));
        }
        refused
    })
    .await;
    assert_eq!(outcomes, LOGINS);
    assert!(peak < HASHES_MAX * HASH_BYTES + 8 * MIB, "{} KiB for {LOGINS} logins", peak >> 10);
}

/// S-23: names that nobody has, as long as names may be, each from another address.
fn names_that_were_tried_are_forgotten() {
    const TRIES: u32 = 200_000;
    let before = ALLOCATOR.current_usage();
    let throttle = Throttle::default();
    for number in 0..TRIES {
        let address = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + number));
        throttle.failed(address, &format!("{number:0255}"), 0);
    }
    let grown = ALLOCATOR.current_usage().saturating_sub(before);
    assert!(grown <= 16 * MIB, "{} KiB after {TRIES} names", grown >> 10);
    // The last ones are still known, so that this has counted something.
    let address = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + TRIES));
    for _ in 0..20 {
        throttle.failed(address, "mallory", 0);
    }
    assert!(throttle.wait_secs(address, "mallory", 0).is_some());
}
