//! How many connections there may be, in total and of one address.
//!
//! What must stay true: every admitted connection is counted until its [`Pass`] is dropped, and an address without
//! connections takes no memory.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::values::Network;

/// Files that connections must leave to the store, the database and the log.
const FILES_RESERVED: u64 = 64;

/// Whom a connection is counted for: one IPv4 address, or one IPv6 network of 64 bits, which is what one household gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Origin(IpAddr);

impl Origin {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(v4.into()),
            IpAddr::V6(v6) => {
                let [a, b, c, d, ..] = v6.segments();
                Self(std::net::Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into())
            }
        }
    }
}

/// Why a connection is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// There are too many in total.
    Total,
    /// There are too many of this address.
    Address,
}

#[derive(Debug, Default)]
struct Counts {
    total: u64,
    of: HashMap<Origin, u64>,
}

/// Counts connections.
#[derive(Debug)]
pub(crate) struct Gate {
    total_max: u64,
    per_address_max: u64,
    trusted: Vec<Network>,
    counts: Mutex<Counts>,
}

/// Leave for one connection.
#[derive(Debug)]
pub(crate) struct Pass {
    gate: Arc<Gate>,
    origin: Origin,
}

impl Gate {
    /// A gate with these bounds; `trusted` addresses are bounded by the total only.
    pub(crate) fn new(total_max: u64, per_address_max: u64, trusted: Vec<Network>) -> Self {
        Self { total_max, per_address_max, trusted, counts: Mutex::default() }
    }

    /// Lets a connection in, or not.
    ///
    /// # Errors
    /// [`Full`].
    pub(crate) fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Pass, Full> {
        let origin = Origin::of(address);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.total >= self.total_max {
            return Err(Full::Total);
        }
        let own = counts.of.get(&origin).copied().unwrap_or(0);
        if own >= self.per_address_max && !self.trusted.iter().any(|network| network.contains(address)) {
            return Err(Full::Address);
        }
        counts.total += 1;
        counts.of.insert(origin, own + 1);
        Ok(Pass { gate: Arc::clone(self), origin })
    }

    /// How many there are.
    pub(crate) fn open(&self) -> u64 {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).total
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut counts = self.gate.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.total -= 1;
        if let Entry::Occupied(mut own) = counts.of.entry(self.origin) {
            *own.get_mut() -= 1;
            if *own.get() == 0 {
                own.remove();
            }
        }
    }
}

/// How many connections fit the number of files that this process may open.
pub(crate) fn connections_that_fit(wanted: u64) -> u64 {
    files_max().map_or(wanted, |files| wanted.min(fitting(files)))
}

/// How many files of blobs the store may keep open once they were read.
pub(crate) fn files_to_keep() -> usize {
    files_max().map_or(usize::MAX, |files| usize::try_from(keeping(files)).unwrap_or(usize::MAX))
}

/// The number of files that this process may open, which is raised as far as it goes. `None` is no limit at all.
fn files_max() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    }
}

/// What is not for connections: a quarter of the files, at least [`FILES_RESERVED`].
fn reserved(files: u64) -> u64 {
    (files / 4).max(FILES_RESERVED)
}

fn fitting(files: u64) -> u64 {
    files.saturating_sub(reserved(files)).max(1)
}

/// Half of [`FILES_RESERVED`] is the database's and the log's. Half of what is left is for uploads and for what is being read.
fn keeping(files: u64) -> u64 {
    (reserved(files) - FILES_RESERVED / 2) / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::section::Setting as _;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn gate(total: u64, own: u64, trusted: &[&str]) -> Arc<Gate> {
        let network = |text: &&str| Network::parse(&serde_json::Value::from(*text)).unwrap();
        Arc::new(Gate::new(total, own, trusted.iter().map(network).collect()))
    }

    #[test]
    fn l_08_one_address_reaches_its_bound_and_others_are_served() {
        let gate = gate(10, 2, &[]);
        let first = gate.admit(ip("192.0.2.1")).unwrap();
        let _second = gate.admit(ip("::ffff:192.0.2.1")).unwrap();
        assert_eq!(gate.admit(ip("192.0.2.1")).unwrap_err(), Full::Address);
        let _other = gate.admit(ip("192.0.2.2")).unwrap();
        drop(first);
        let _again = gate.admit(ip("192.0.2.1")).unwrap();
        assert_eq!(gate.open(), 3);
    }

    #[test]
    fn an_ipv6_network_of_64_bits_is_one_client() {
        let gate = gate(10, 1, &[]);
        let _first = gate.admit(ip("2001:db8:1:2:a::1")).unwrap();
        assert_eq!(gate.admit(ip("2001:db8:1:2:b::2")).unwrap_err(), Full::Address);
        let _other = gate.admit(ip("2001:db8:1:3::1")).unwrap();
    }

    #[test]
    fn a_trusted_proxy_is_bounded_by_the_total_only() {
        let gate = gate(3, 1, &["192.0.2.0/24"]);
        let _passes: Vec<Pass> = (0..3).map(|_| gate.admit(ip("192.0.2.9")).unwrap()).collect();
        assert_eq!(gate.admit(ip("192.0.2.9")).unwrap_err(), Full::Total);
        assert_eq!(gate.admit(ip("198.51.100.1")).unwrap_err(), Full::Total);
    }

    #[test]
    fn an_address_without_connections_is_forgotten() {
        let gate = gate(10, 2, &[]);
        drop(gate.admit(ip("192.0.2.1")).unwrap());
        assert!(gate.counts.lock().unwrap().of.is_empty());
        assert_eq!(gate.open(), 0);
    }

    #[test]
    fn l_19_files_are_left_to_the_store() {
        assert_eq!(fitting(256), 192);
        assert_eq!(fitting(20_000), 15_000);
        assert_eq!(fitting(10), 1);
    }

    /// The files that it kept open after pulls once took all that were left, and no connection could be accepted any more.
    #[test]
    fn l_19_the_store_keeps_no_more_files_open_than_leave_it_some() {
        assert_eq!(keeping(256), 16);
        assert_eq!(keeping(20_000), 2_484);
    }
}
