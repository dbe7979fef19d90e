//! Values that need more than a number or a word: URL, network, the metrics address, the log filter.
//!
//! What must stay true: each is parsed here, once; what the rest of the server holds is well formed.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

use super::section::Setting;

/// The URL under which clients reach the registry, without a path.
///
/// Realm and `Location` are made from it and never from a request's `Host` (S-37).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExternalUrl {
    secure: bool,
    authority: String,
}

impl ExternalUrl {
    /// The host alone, an IPv6 address without its brackets.
    pub(crate) fn host(&self) -> &str {
        let host = match self.authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
            _ => &self.authority,
        };
        host.trim_start_matches('[').trim_end_matches(']')
    }
}

impl fmt::Display for ExternalUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.secure { "https" } else { "http" }, self.authority)
    }
}

impl Setting for ExternalUrl {
    fn kind() -> String {
        "a URL without a path, such as `https://registry.example.org`".to_owned()
    }

    fn parse(value: &Value) -> Option<Self> {
        let uri: http::Uri = value.as_str()?.parse().ok()?;
        let secure = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = uri.authority()?;
        let bare = uri.path() == "/" && uri.query().is_none() && !authority.as_str().contains('@');
        (bare && !authority.host().is_empty()).then(|| Self { secure, authority: authority.to_string() })
    }

    fn show(&self) -> Value {
        Value::from(self.to_string())
    }
}

/// An IP network in CIDR notation; a bare address is a network of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// Whether an address lies in it. An IPv4 address that arrives mapped into IPv6 counts as IPv4.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let (ours, theirs, width) = match (self.address, address.to_canonical()) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                (u128::from(ours.to_bits()), u128::from(theirs.to_bits()), 32)
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => (ours.to_bits(), theirs.to_bits(), 128),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return false,
        };
        // A shift by the full width is overflow in Rust, and a prefix of 0 means that everything matches.
        let shift = width - u32::from(self.prefix);
        ours.checked_shr(shift).unwrap_or(0) == theirs.checked_shr(shift).unwrap_or(0)
    }
}

impl Setting for Network {
    fn kind() -> String {
        "an IP address or network such as `10.0.0.0/8`".to_owned()
    }

    fn parse(value: &Value) -> Option<Self> {
        let text = value.as_str()?;
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address.parse().ok()?, Some(prefix.parse::<u8>().ok()?)),
            None => (text.parse().ok()?, None),
        };
        let width = match address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        };
        let prefix = prefix.unwrap_or(width);
        (prefix <= width).then_some(Self { address, prefix })
    }

    fn show(&self) -> Value {
        Value::from(format!("{}/{}", self.address, self.prefix))
    }
}

/// A media type of JSON documents, without parameters and in lower case (RFC 6838 section 4.2, RFC 6839 section 3.1). Browsers show none
/// of them as a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MediaType(String);

impl MediaType {
    /// Most characters of each half (RFC 6838 section 4.2).
    const HALF_CHARS_MAX: usize = 127;

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Setting for MediaType {
    fn kind() -> String {
        "a media type of JSON, such as `application/vnd.example.manifest.v1+json`".to_owned()
    }

    fn parse(value: &Value) -> Option<Self> {
        let text = value.as_str()?.to_ascii_lowercase();
        let is_half = |half: &str| {
            half.starts_with(|first: char| first.is_ascii_alphanumeric())
                && half.len() <= Self::HALF_CHARS_MAX
                && half.chars().all(|c| c.is_ascii_alphanumeric() || "!#$&-^_.+".contains(c))
        };
        let (kind, subtype) = text.split_once('/')?;
        (is_half(kind) && is_half(subtype) && subtype.ends_with("+json")).then_some(Self(text))
    }

    fn show(&self) -> Value {
        Value::from(self.0.as_str())
    }
}

/// Where the metrics are served, if anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MetricsListen {
    /// Nowhere.
    Off,
    /// On this address.
    At(SocketAddr),
}

impl Setting for MetricsListen {
    fn kind() -> String {
        "`off`, or an IP address and a port".to_owned()
    }

    fn parse(value: &Value) -> Option<Self> {
        // YAML 1.1 reads the word `off` as the boolean.
        if value == &Value::Bool(false) || value == "off" {
            return Some(Self::Off);
        }
        SocketAddr::parse(value).map(Self::At)
    }

    fn show(&self) -> Value {
        match self {
            Self::Off => Value::from("off"),
            Self::At(address) => address.show(),
        }
    }
}

/// What is logged: a level, or directives such as `info,taffrail_core=debug`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogFilter(String);

impl LogFilter {
    /// The default: what an operator wants to read every day.
    pub(crate) fn info() -> Self {
        Self("info".to_owned())
    }

    /// The directives.
    pub(crate) fn directives(&self) -> &str {
        &self.0
    }
}

impl Setting for LogFilter {
    fn kind() -> String {
        "`error`, `warn`, `info`, `debug` or `trace`, or a list such as `info,taffrail_core=debug`".to_owned()
    }

    fn parse(value: &Value) -> Option<Self> {
        let text = value.as_str()?;
        // A single word that is no level would be taken as a target's name, and everything would go silent.
        let known = ["off", "error", "warn", "info", "debug", "trace"];
        let sensible = text.split(',').all(|part| part.contains('=') || known.contains(&part.trim()));
        (sensible && tracing_subscriber::EnvFilter::try_new(text).is_ok()).then(|| Self(text.to_owned()))
    }

    fn show(&self) -> Value {
        Value::from(self.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Option<Network> {
        Network::parse(&Value::from(text))
    }

    fn url(text: &str) -> Option<ExternalUrl> {
        ExternalUrl::parse(&Value::from(text))
    }

    #[test]
    fn a_media_type_has_two_halves_and_no_parameters() {
        let parse = |text: &str| MediaType::parse(&Value::from(text));
        assert_eq!(parse("Application/vnd.x+JSON").unwrap().as_str(), "application/vnd.x+json");
        for bad in [
            "",
            "application",
            "application/",
            "/json",
            "a/b/c",
            "a/b+json; c=d",
            "*/*",
            "a/.b+json",
            "text/html",
            "a/json",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_network_holds_its_own_addresses_and_no_others() {
        let ten = network("10.1.0.0/16").unwrap();
        assert!(ten.contains("10.1.255.255".parse().unwrap()));
        assert!(ten.contains("::ffff:10.1.2.3".parse().unwrap()));
        assert!(!ten.contains("10.2.0.0".parse().unwrap()));
        assert!(!ten.contains("::1".parse().unwrap()));
        let one = network("192.0.2.7").unwrap();
        assert!(one.contains("192.0.2.7".parse().unwrap()));
        assert!(!one.contains("192.0.2.6".parse().unwrap()));
        let all = network("0.0.0.0/0").unwrap();
        assert!(all.contains("203.0.113.9".parse().unwrap()));
        assert!(!all.contains("2001:db8::1".parse().unwrap()));
        assert!(network("2001:db8::/32").unwrap().contains("2001:db8:1::".parse().unwrap()));
        for bad in ["", "*", "10.0.0.0/33", "::/129", "10.0.0.0/-1", "example.org"] {
            assert_eq!(network(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_external_url_is_scheme_host_and_port_only() {
        let parsed = url("https://registry.example.org:8443").unwrap();
        assert_eq!(parsed.to_string(), "https://registry.example.org:8443");
        assert_eq!(parsed.host(), "registry.example.org");
        assert_eq!(url("http://[::1]:5000/").unwrap().host(), "::1");
        assert_eq!(url("http://[::1]").unwrap().host(), "::1");
        for bad in
            ["", "registry.example.org", "ftp://a", "https://a/b", "https://a?b", "https://u@a", "https://"]
        {
            assert_eq!(url(bad), None, "{bad}");
        }
    }

    #[test]
    fn metrics_can_be_switched_off_in_either_notation() {
        assert_eq!(MetricsListen::parse(&Value::from("off")), Some(MetricsListen::Off));
        assert_eq!(MetricsListen::parse(&Value::from(false)), Some(MetricsListen::Off));
        assert_eq!(MetricsListen::parse(&Value::from("5001")), None);
    }

    #[test]
    fn a_misspelt_level_is_refused() {
        assert!(LogFilter::parse(&Value::from("info,hyper=warn")).is_some());
        assert_eq!(LogFilter::parse(&Value::from("inof")), None);
        assert_eq!(LogFilter::parse(&Value::from("a=b=c")), None);
    }
}
