//! How much is done, and where.

use std::path::PathBuf;
use std::time::Duration;

/// The sizes of one run.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Rounds of each subject in each case.
    pub(crate) rounds: u32,
    /// Rounds before those that count: memory that the hypervisor took back is touched again.
    pub(crate) warm_up: u32,
    /// Length of a large blob.
    pub(crate) large_bytes: u64,
    /// How long a round of small operations takes.
    pub(crate) round_time: Duration,
    /// How long a server rests before its memory is read.
    pub(crate) rest: Duration,
    /// Connections that stay idle.
    pub(crate) idle_connections: usize,
    /// Pulls at once.
    pub(crate) concurrent_pulls: usize,
    /// Small blobs, manifests or layers that a store is filled with before it is read.
    pub(crate) items: usize,
    /// Blobs of the store whose opening is measured.
    pub(crate) many_blobs: u64,
    /// The folder for everything, on the file system that is measured.
    pub(crate) dir: PathBuf,
    /// More registries, given by their URL.
    pub(crate) others: Vec<Other>,
}

/// A registry that somebody else started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Other {
    pub(crate) name: String,
    /// `http://address:port`.
    pub(crate) url: String,
    /// Its process, for the processor time and memory.
    pub(crate) pid: Option<u32>,
    /// Name and password.
    pub(crate) user: Option<(String, String)>,
}

impl Other {
    /// Parses `name=url[,pid=N][,user=NAME:PASSWORD]`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (name, rest) = text.split_once('=').ok_or("name=url expected")?;
        let mut parts = rest.split(',');
        let url = parts.next().unwrap_or_default().trim_end_matches('/');
        if !url.starts_with("http://") {
            return Err("only http:// can be measured".to_owned());
        }
        let mut other = Self { name: name.to_owned(), url: url.to_owned(), pid: None, user: None };
        for part in parts.filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                Some(("pid", "")) => {}
                Some(("pid", pid)) => {
                    other.pid = Some(pid.parse().map_err(|_| format!("no process id: {pid}"))?)
                }
                Some(("user", user)) => {
                    let (name, password) = user.split_once(':').ok_or("user=NAME:PASSWORD expected")?;
                    other.user = Some((name.to_owned(), password.to_owned()));
                }
                _ => return Err(format!("unknown: {part}")),
            }
        }
        Ok(other)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A plan of nothing.
    pub(crate) fn plan() -> Plan {
        Plan {
            rounds: 1,
            warm_up: 0,
            large_bytes: 1 << 20,
            // Long enough that a busy machine gets one operation done.
            round_time: Duration::from_millis(200),
            rest: Duration::ZERO,
            idle_connections: 1,
            concurrent_pulls: 1,
            items: 1,
            many_blobs: 1,
            dir: PathBuf::from("."),
            others: Vec::new(),
        }
    }

    #[test]
    fn another_registry_is_a_name_a_url_and_perhaps_a_process_and_a_user() {
        let other = Other::parse("zot=http://127.0.0.1:8080/,pid=17,user=a:b:c").unwrap();
        assert_eq!(
            (other.name.as_str(), other.url.as_str(), other.pid),
            ("zot", "http://127.0.0.1:8080", Some(17))
        );
        assert_eq!(other.user, Some(("a".to_owned(), "b:c".to_owned())));
        assert_eq!(Other::parse("zot=http://h:1,pid=").unwrap().pid, None);
        for bad in ["zot", "zot=https://h", "zot=http://h,pid=x", "zot=http://h,colour=red"] {
            assert!(Other::parse(bad).is_err(), "{bad}");
        }
    }
}
