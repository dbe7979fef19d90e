//! Throttling of wrong passwords: per address, and per address and name; never per name alone, which would let anybody lock
//! anybody out.
//!
//! What must stay true: memory is bounded whatever names are tried; nobody is made to wait on a worker, they are told when to
//! come back.

use std::net::{IpAddr, Ipv6Addr};

use moka::sync::Cache;
use sha2::{Digest as _, Sha256};

/// Failures that cost nothing: typing errors, and a client that tries an old password a few times. One is forgotten a minute.
const OF_NAME: Allowance = Allowance { free: 10, forget_one_us: 60_000_000 };

/// The same, of one address over all names: a site behind one address has many who mistype. Ten are forgotten a minute.
const OF_ADDRESS: Allowance = Allowance { free: 100, forget_one_us: 6_000_000 };

/// Looks at the cache of verified passwords in a minute that find nothing, of one address and name: a look is quick where a hash is
/// slow, so that without a bound who is told to wait could try thousands of passwords a second meanwhile. Looks that find the
/// password cost nothing: a site whose clients know it is not held up by one that does not.
pub(super) const LOOKS_A_MINUTE: u32 = 60;

const MINUTE_US: i64 = 60_000_000;

/// Each further failure doubles the wait, from a second to this many.
const WAIT_MAX_SECS: u32 = 60;

/// Addresses, and pairs of address and name, that are remembered. About 100 bytes each.
const REMEMBERED_MAX: u64 = 50_000;

/// Failures are forgotten after so long without another.
const FORGET_AFTER: std::time::Duration = std::time::Duration::from_secs(900);

/// The failures that are remembered.
#[derive(Debug)]
pub struct Throttle {
    failures: Cache<Key, Failures>,
    looks: Cache<Key, Looks>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Address(IpAddr),
    /// An address, and a digest of a name: names are long when somebody wants our memory.
    Name(IpAddr, [u8; 16]),
}

#[derive(Clone, Copy, Debug, Default)]
struct Failures {
    /// Failures that are not forgotten yet.
    count: u32,
    /// When the last one was.
    last_us: i64,
    blocked_until_us: i64,
}

/// Looks in vain since a time.
#[derive(Clone, Copy, Debug, Default)]
struct Looks {
    count: u32,
    since_us: i64,
}

impl Looks {
    /// Those that count now. A clock that was set back begins anew as well.
    fn now(self, now_us: i64) -> Looks {
        let age_us = now_us.saturating_sub(self.since_us);
        if (0..MINUTE_US).contains(&age_us) { self } else { Looks { count: 0, since_us: now_us } }
    }
}

/// How many failures cost nothing, and how fast they are forgotten.
#[derive(Clone, Copy, Debug)]
struct Allowance {
    free: u32,
    forget_one_us: i64,
}

impl Failures {
    fn one_more(mut self, allowance: Allowance, now_us: i64) -> Failures {
        let forgotten = now_us.saturating_sub(self.last_us).max(0) / allowance.forget_one_us;
        self.count =
            self.count.saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX)).saturating_add(1);
        self.last_us = now_us;
        if self.count > allowance.free {
            let doubled = 1_u32.checked_shl(self.count - allowance.free - 1).unwrap_or(WAIT_MAX_SECS);
            self.blocked_until_us = now_us + i64::from(doubled.clamp(1, WAIT_MAX_SECS)) * 1_000_000;
        }
        self
    }
}

impl Default for Throttle {
    fn default() -> Throttle {
        Throttle {
            failures: Cache::builder().max_capacity(REMEMBERED_MAX).time_to_idle(FORGET_AFTER).build(),
            looks: Cache::builder().max_capacity(REMEMBERED_MAX).time_to_idle(FORGET_AFTER).build(),
        }
    }
}

impl Throttle {
    /// How long the caller must wait before the next try, in seconds; `None` when they may try now.
    pub fn wait_secs(&self, address: IpAddr, name: &str, now_us: i64) -> Option<u32> {
        let until_us = [Key::Address(network(address)), name_key(address, name)]
            .iter()
            .filter_map(|key| self.failures.get(key))
            .map(|failures| failures.blocked_until_us)
            .max()
            .unwrap_or(0);
        let left_us = until_us.saturating_sub(now_us);
        (left_us > 0).then(|| u32::try_from(left_us / 1_000_000 + 1).unwrap_or(WAIT_MAX_SECS))
    }

    /// Counts a failure.
    pub fn failed(&self, address: IpAddr, name: &str, now_us: i64) {
        for (key, allowance) in
            [(Key::Address(network(address)), OF_ADDRESS), (name_key(address, name), OF_NAME)]
        {
            // Read and written as one, so that failures at the same moment all count.
            self.failures.entry(key).and_upsert_with(|entry| {
                entry.map_or_else(Failures::default, |entry| *entry.value()).one_more(allowance, now_us)
            });
        }
    }

    /// Whether there is a look left at what was verified before: see [`LOOKS_A_MINUTE`].
    pub fn may_look(&self, address: IpAddr, name: &str, now_us: i64) -> bool {
        let looks = self.looks.get(&name_key(address, name)).unwrap_or_default();
        looks.now(now_us).count < LOOKS_A_MINUTE
    }

    /// Counts a look that found nothing.
    pub fn looked_in_vain(&self, address: IpAddr, name: &str, now_us: i64) {
        self.looks.entry(name_key(address, name)).and_upsert_with(|entry| {
            let looks = entry.map_or_else(Looks::default, |entry| *entry.value()).now(now_us);
            Looks { count: looks.count.saturating_add(1), ..looks }
        });
    }

    /// Forgets the failures and looks of a name from an address that gave the right password. The failures of the address stay: one good
    /// password does not excuse guessing at others.
    pub fn succeeded(&self, address: IpAddr, name: &str) {
        let key = name_key(address, name);
        self.failures.invalidate(&key);
        self.looks.invalidate(&key);
    }
}

fn name_key(address: IpAddr, name: &str) -> Key {
    let digest: [u8; 32] = Sha256::digest(name).into();
    // Half of it is enough: who finds two names of one half shares the blame between them.
    let mut half = [0; 16];
    half.copy_from_slice(&digest[..16]);
    Key::Name(network(address), half)
}

/// Of an IPv6 address the /64: one customer has as many addresses in it as they like.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => v6
            .to_ipv4_mapped()
            .map_or_else(|| IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)), IpAddr::V4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BAD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const GOOD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    #[test]
    fn guessing_from_one_address_does_not_lock_the_user_out_elsewhere() {
        let throttle = Throttle::default();
        for _ in 0..OF_NAME.free {
            assert_eq!(throttle.wait_secs(BAD, "alice", 0), None);
            throttle.failed(BAD, "alice", 0);
        }
        throttle.failed(BAD, "alice", 0);
        assert!(throttle.wait_secs(BAD, "alice", 0).is_some());
        assert_eq!(throttle.wait_secs(GOOD, "alice", 0), None);
        assert_eq!(throttle.wait_secs(BAD, "bob", 0), None);
    }

    #[test]
    fn waits_double_up_to_a_bound_and_end() {
        let throttle = Throttle::default();
        for _ in 0..OF_NAME.free + 40 {
            throttle.failed(BAD, "alice", 0);
        }
        let wait = throttle.wait_secs(BAD, "alice", 0).unwrap();
        assert!((WAIT_MAX_SECS..=WAIT_MAX_SECS + 1).contains(&wait), "{wait}");
        assert_eq!(throttle.wait_secs(BAD, "alice", i64::from(WAIT_MAX_SECS) * 1_000_000), None);
        throttle.succeeded(BAD, "alice");
        assert_eq!(throttle.wait_secs(BAD, "alice", 0), None);
    }

    #[test]
    fn one_failure_a_minute_blocks_nobody_for_ever() {
        let throttle = Throttle::default();
        for number in 0..OF_ADDRESS.free + 20 {
            throttle.failed(BAD, &format!("user{number}"), 0);
        }
        assert!(throttle.wait_secs(BAD, "alice", 0).is_some());
        let minute_us = 60_000_000;
        for minute in 1..30 {
            throttle.failed(BAD, "mallory", minute * minute_us);
        }
        assert_eq!(throttle.wait_secs(BAD, "alice", 30 * minute_us), None);
    }

    #[test]
    fn a_million_names_from_one_address_take_bounded_memory_and_are_throttled() {
        let throttle = Throttle::default();
        for number in 0..200_000 {
            throttle.failed(BAD, &format!("user{number}"), 0);
        }
        throttle.failures.run_pending_tasks();
        assert!(throttle.failures.entry_count() <= REMEMBERED_MAX);
        assert!(throttle.wait_secs(BAD, "anybody", 0).is_some());
    }

    #[test]
    fn looks_in_vain_are_counted_by_the_minute_and_forgotten_with_the_right_password() {
        let throttle = Throttle::default();
        for _ in 0..LOOKS_A_MINUTE {
            assert!(throttle.may_look(BAD, "alice", MINUTE_US));
            throttle.looked_in_vain(BAD, "alice", MINUTE_US);
        }
        assert!(!throttle.may_look(BAD, "alice", 2 * MINUTE_US - 1));
        assert!(throttle.may_look(GOOD, "alice", MINUTE_US) && throttle.may_look(BAD, "bob", MINUTE_US));
        assert!(throttle.may_look(BAD, "alice", 2 * MINUTE_US));
        assert!(throttle.may_look(BAD, "alice", 0), "the clock was set back");
        throttle.succeeded(BAD, "alice");
        assert!(throttle.may_look(BAD, "alice", MINUTE_US));
    }

    #[test]
    fn addresses_of_one_ipv6_network_count_as_one() {
        let one: IpAddr = "2001:db8::1".parse().unwrap();
        let two: IpAddr = "2001:db8::2".parse().unwrap();
        assert_eq!(network(one), network(two));
        assert_eq!(network("::ffff:192.0.2.1".parse().unwrap()), BAD);
    }
}
