//! Whom a request is from, when proxies that we trust have handed it on.
//!
//! What must stay true: what an untrusted peer writes into `X-Forwarded-For` changes nothing (S-36). Of a trusted
//! one we read the list from the right, where each proxy appends, and stop at the first address that is no trusted proxy:
//! everything to its left was written by somebody whom nobody vouches for.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName};

use crate::config::values::Network;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The address that a request is from.
pub(crate) fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[Network]) -> IpAddr {
    let peer = peer.to_canonical();
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    if !is_trusted(peer) {
        return peer;
    }
    let mut nearest = peer;
    // Several headers are one list, in order (RFC 9110 section 5.3).
    let lines: Vec<_> = headers.get_all(X_FORWARDED_FOR).iter().collect();
    for line in lines.into_iter().rev() {
        let Ok(text) = line.to_str() else { return nearest };
        for entry in text.rsplit(',') {
            let Some(address) = parse(entry.trim()) else { return nearest };
            nearest = address;
            if !is_trusted(address) {
                return nearest;
            }
        }
    }
    nearest
}

/// An entry: an address, some proxies add a port.
fn parse(entry: &str) -> Option<IpAddr> {
    let bare = entry.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(entry);
    bare.parse()
        .or_else(|_| entry.parse::<std::net::SocketAddr>().map(|address| address.ip()))
        .ok()
        .map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::config::section::Setting as _;

    fn from(peer: &str, forwarded: &[&str], trusted: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for line in forwarded {
            headers.append(X_FORWARDED_FOR, HeaderValue::from_str(line).unwrap());
        }
        let network = |text: &&str| Network::parse(&serde_json::Value::from(*text)).unwrap();
        let trusted: Vec<Network> = trusted.iter().map(network).collect();
        client_address(peer.parse().unwrap(), &headers, &trusted).to_string()
    }

    #[test]
    fn s_36_an_untrusted_peer_is_itself_whatever_it_says() {
        assert_eq!(from("192.0.2.1", &["10.0.0.1"], &[]), "192.0.2.1");
        assert_eq!(from("192.0.2.1", &["10.0.0.1"], &["10.0.0.0/8"]), "192.0.2.1");
        assert_eq!(from("::ffff:192.0.2.1", &[], &[]), "192.0.2.1");
    }

    #[test]
    fn s_36_only_what_trusted_proxies_appended_counts() {
        let trusted = ["10.0.0.0/8"];
        assert_eq!(from("10.0.0.1", &["198.51.100.7"], &trusted), "198.51.100.7");
        assert_eq!(from("10.0.0.1", &["1.2.3.4, 198.51.100.7, 10.9.9.9"], &trusted), "198.51.100.7");
        assert_eq!(from("10.0.0.1", &["1.2.3.4", "198.51.100.7", "10.9.9.9"], &trusted), "198.51.100.7");
        assert_eq!(from("10.0.0.1", &[], &trusted), "10.0.0.1");
        assert_eq!(from("10.0.0.1", &["1.2.3.4, junk"], &trusted), "10.0.0.1");
        assert_eq!(from("10.0.0.1", &["[2001:db8::1]:443"], &trusted), "2001:db8::1");
        assert_eq!(from("10.0.0.1", &["[2001:db8::1]"], &trusted), "2001:db8::1");
    }
}
