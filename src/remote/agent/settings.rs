//! What the agent is told: by its options, by the environment, and by a file for what they leave open.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::config::{self, Seconds};

/// Shortest lease: etcd grants none below its election timeout, a second by default; renewals must fit.
const MIN_LEASE_S: u64 = 5;
/// Longest: so long a dead agent would be thought alive.
const MAX_LEASE_S: u64 = 3600;

/// Shortest time to confirm: at half of it the gateway must have been asked, which is done every five seconds.
const MIN_CONFIRM_S: u32 = 20;
/// Longest: as long nobody else can change anything.
const MAX_CONFIRM_S: u32 = 3600;

/// What was said, and where not, nothing. The file's keys, and the options of the same names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Given {
    /// URLs of etcd's members, `https://etcd1.example:2379`.
    pub endpoints: Vec<String>,
    /// What all keys begin with; absent: `/softgate`.
    pub prefix: Option<String>,
    /// What this node is called in keys; absent: the host's name.
    pub node: Option<String>,
    /// Certificates of the authorities that vouch for etcd (PEM).
    pub ca: Option<PathBuf>,
    /// The certificate the agent shows, with those between it and the authority (PEM).
    pub cert: Option<PathBuf>,
    /// The key of that (PEM).
    pub key: Option<PathBuf>,
    /// The user of etcd, where that asks for one.
    pub user: Option<String>,
    /// A file with the user's password.
    pub password_file: Option<PathBuf>,
    /// After so many seconds without a sign of life the status goes away; absent: 30.
    pub lease_s: Option<u64>,
    /// Documents are taken back after so many seconds unless the agent confirms them, which it does at half of that;
    /// absent: they are in force at once.
    pub confirm_s: Option<u32>,
    /// A document that would end more live sessions than so many is refused; absent: however many.
    pub max_dropped: Option<u64>,
    /// The control socket of the gateway.
    pub socket: Option<PathBuf>,
}

impl Given {
    /// Reads a file.
    pub fn from_file(file: &Path) -> Result<Given, String> {
        let text = config::read_file(file)
            .map_err(|error| format!("{}: cannot be read: {error}", file.display()))?;
        toml::from_str(&text).map_err(|error| format!("{}: {error}", file.display()))
    }

    /// What is open here, as there.
    #[must_use]
    pub fn or(self, other: Given) -> Given {
        Given {
            endpoints: if self.endpoints.is_empty() { other.endpoints } else { self.endpoints },
            prefix: self.prefix.or(other.prefix),
            node: self.node.or(other.node),
            ca: self.ca.or(other.ca),
            cert: self.cert.or(other.cert),
            key: self.key.or(other.key),
            user: self.user.or(other.user),
            password_file: self.password_file.or(other.password_file),
            lease_s: self.lease_s.or(other.lease_s),
            confirm_s: self.confirm_s.or(other.confirm_s),
            max_dropped: self.max_dropped.or(other.max_dropped),
            socket: self.socket.or(other.socket),
        }
    }
}

/// What the agent goes by.
#[derive(Clone)]
pub struct Settings {
    /// URLs of etcd's members; at least one, either all with TLS or none.
    pub endpoints: Vec<String>,
    /// Where in etcd.
    pub keys: Keys,
    /// What TLS goes by, where the endpoints are `https`.
    pub tls: Option<Tls>,
    /// User and password.
    pub user: Option<(String, String)>,
    /// Without a sign of life for so long, the status goes away.
    pub lease: Duration,
    /// Documents are taken back after so long unless they are confirmed.
    pub confirm: Option<Seconds>,
    /// Live sessions that a document may end.
    pub max_dropped: Option<u64>,
    /// The control socket of the gateway.
    pub socket: PathBuf,
}

/// PEM, as read.
#[derive(Clone)]
pub struct Tls {
    /// Of authorities.
    pub ca: Vec<u8>,
    /// Certificate and key that the agent shows.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// The keys in etcd that concern a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// What the node is called.
    pub node: String,
    /// `PREFIX/config`
    pub shared: String,
    /// `PREFIX/nodes/NODE/config`
    pub own: String,
    /// `PREFIX/status/NODE`
    pub status: String,
    /// `PREFIX/files/`
    pub files: String,
}

impl Keys {
    /// Checks both, and puts them together.
    pub fn new(prefix: &str, node: &str) -> Result<Keys, String> {
        let parts = prefix.strip_prefix('/').map(|rest| rest.split('/').all(|part| !part.is_empty()));
        if parts != Some(true) || prefix.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(format!(
                "prefix: {prefix:?}: a prefix begins with / and does not end with it: /softgate"
            ));
        }
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if !(1..=64).contains(&node.len()) || !node.bytes().all(legal) {
            return Err(format!("node: {node:?}: a node's name is 1 to 64 characters of A-Z a-z 0-9 . _ -"));
        }
        Ok(Keys {
            node: node.to_owned(),
            shared: format!("{prefix}/config"),
            own: format!("{prefix}/nodes/{node}/config"),
            status: format!("{prefix}/status/{node}"),
            files: format!("{prefix}/files/"),
        })
    }
}

impl Settings {
    /// Checks what was given, and reads the files it names.
    pub fn new(given: Given, host_name: &str) -> Result<Settings, String> {
        let Given {
            endpoints,
            prefix,
            node,
            ca,
            cert,
            key,
            user,
            password_file,
            lease_s,
            confirm_s,
            max_dropped,
            socket,
        } = given;
        let keys = Keys::new(prefix.as_deref().unwrap_or("/softgate"), node.as_deref().unwrap_or(host_name))?;
        let secure = match endpoints.iter().map(|url| url.starts_with("https://")).collect::<Vec<_>>()[..] {
            [] => return Err("endpoints: where is etcd? Give --endpoint https://HOST:2379".into()),
            [first, ref rest @ ..] if rest.iter().all(|one| *one == first) => first,
            _ => return Err("endpoints: either all begin with https://, or all with http://".into()),
        };
        if let Some(url) = endpoints.iter().find(|url| !secure && !url.starts_with("http://")) {
            return Err(format!("endpoints: {url:?}: write https://HOST:2379 or http://HOST:2379"));
        }
        let read = |file: &Path| {
            std::fs::read(file).map_err(|error| format!("{}: cannot be read: {error}", file.display()))
        };
        let identity = match (cert, key) {
            (Some(cert), Some(key)) => Some((read(&cert)?, read(&key)?)),
            (None, None) => None,
            _ => return Err("cert and key go together".into()),
        };
        let tls = match (secure, ca) {
            (true, Some(ca)) => Some(Tls { ca: read(&ca)?, identity }),
            (true, None) => return Err("ca: whose word counts for https:// endpoints? Give --ca FILE".into()),
            (false, None) if identity.is_none() => None,
            (false, _) => return Err("ca, cert and key are for https:// endpoints".into()),
        };
        let user = match (user, password_file) {
            (Some(user), Some(file)) => {
                let password = String::from_utf8(read(&file)?)
                    .map_err(|_| format!("{}: the password is not UTF-8", file.display()))?;
                Some((user, password.trim_end_matches(['\r', '\n']).to_owned()))
            }
            (None, None) => None,
            _ => return Err("user and password_file go together".into()),
        };
        let lease_s = lease_s.unwrap_or(30);
        if !(MIN_LEASE_S..=MAX_LEASE_S).contains(&lease_s) {
            return Err(format!("lease_s: {lease_s}: allowed is {MIN_LEASE_S} to {MAX_LEASE_S} seconds"));
        }
        let confirm = confirm_s.map(|confirm_s| match confirm_s {
            MIN_CONFIRM_S..=MAX_CONFIRM_S => Seconds::new(confirm_s).map_err(|error| error.to_string()),
            _ => {
                Err(format!("confirm_s: {confirm_s}: allowed is {MIN_CONFIRM_S} to {MAX_CONFIRM_S} seconds"))
            }
        });
        let confirm = confirm.transpose()?;
        let socket = socket.unwrap_or_else(|| config::Control::DEFAULT_SOCKET.into());
        Ok(Settings {
            endpoints,
            keys,
            tls,
            user,
            lease: Duration::from_secs(lease_s),
            confirm,
            max_dropped,
            socket,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(urls: &[&str]) -> Given {
        Given { endpoints: urls.iter().map(|url| (*url).to_owned()).collect(), ..Given::default() }
    }

    fn refused(given: Given) -> String {
        Settings::new(given, "gw1").err().expect("it is wrong")
    }

    #[test]
    fn options_come_before_the_file() {
        let file: Given =
            toml::from_str("endpoints = ['http://192.0.2.1:2379']\nnode = 'a'\nlease_s = 60\n").unwrap();
        let options = Given { node: Some("b".into()), ..Given::default() };
        let settings = Settings::new(options.or(file), "host").unwrap();
        assert_eq!(settings.endpoints, ["http://192.0.2.1:2379"]);
        assert_eq!(settings.keys.status, "/softgate/status/b");
        assert_eq!(settings.lease, Duration::from_secs(60));
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert!(toml::from_str::<Given>("endpoint = 'http://192.0.2.1:2379'").is_err());
        assert!(refused(Given::default()).starts_with("endpoints: where is etcd?"));
        assert!(refused(endpoints(&["192.0.2.1:2379"])).contains("write https://HOST:2379"));
        assert!(
            refused(endpoints(&["http://192.0.2.1:2379", "https://192.0.2.2:2379"])).contains("either all")
        );
        assert!(refused(endpoints(&["https://192.0.2.1:2379"])).starts_with("ca: "));
        let plain = endpoints(&["http://192.0.2.1:2379"]);
        assert!(refused(Given { ca: Some("ca.pem".into()), ..plain.clone() }).contains("https://"));
        assert!(refused(Given { cert: Some("cert.pem".into()), ..plain.clone() }).contains("together"));
        assert!(refused(Given { user: Some("gw1".into()), ..plain.clone() }).contains("together"));
        assert!(refused(Given { lease_s: Some(1), ..plain.clone() }).contains("5 to 3600"));
        assert!(refused(Given { confirm_s: Some(19), ..plain.clone() }).contains("20 to 3600"));
        for prefix in ["", "/", "softgate", "/softgate/", "/soft//gate", "/soft gate"] {
            assert!(Keys::new(prefix, "gw1").is_err(), "{prefix}");
        }
        for node in ["", "a/b", "a b"] {
            assert!(Keys::new("/softgate", node).is_err(), "{node}");
        }
        assert_eq!(Keys::new("/a/b", "gw1").unwrap().own, "/a/b/nodes/gw1/config");
    }
}
