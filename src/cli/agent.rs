//! `softgate agent`: follows a config document in etcd.

use std::path::PathBuf;

use super::Trouble;
use super::change::ttl;
use super::run::log_to_stderr;
use crate::config::Seconds;
use crate::remote::agent::{self, Given, Settings};

/// Follow a config document in etcd, and write back what became of it
///
/// Applies PREFIX/nodes/NODE/config, or PREFIX/config where that is not there, whenever it is written, as `softgate
/// apply` would; says under PREFIX/status/NODE what came of it.
#[derive(Debug, clap::Args)]
pub struct AgentArgs {
    /// A member of etcd, https://HOST:2379; several times or with commas for several
    #[arg(long = "endpoint", value_name = "URL", value_delimiter = ',', env = "SOFTGATE_ETCD_ENDPOINTS")]
    endpoints: Vec<String>,
    /// What all keys begin with [default: /softgate]
    #[arg(long, value_name = "KEY", env = "SOFTGATE_ETCD_PREFIX")]
    prefix: Option<String>,
    /// What this node is called in keys [default: the host's name]
    #[arg(long, value_name = "NAME", env = "SOFTGATE_NODE")]
    node: Option<String>,
    /// Certificates of the authorities that vouch for etcd (PEM)
    #[arg(long, value_name = "FILE", env = "SOFTGATE_ETCD_CA")]
    ca: Option<PathBuf>,
    /// The certificate to show (PEM)
    #[arg(long, value_name = "FILE", env = "SOFTGATE_ETCD_CERT")]
    cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE", env = "SOFTGATE_ETCD_KEY")]
    key: Option<PathBuf>,
    /// The user of etcd, where that asks for one
    #[arg(long, value_name = "NAME", env = "SOFTGATE_ETCD_USER")]
    user: Option<String>,
    /// A file with the user's password
    #[arg(long, value_name = "FILE", env = "SOFTGATE_ETCD_PASSWORD_FILE")]
    password_file: Option<PathBuf>,
    /// The status goes away after so many seconds without a sign of life [default: 30]
    #[arg(long = "lease", value_name = "SECONDS")]
    lease_s: Option<u64>,
    /// The gateway takes a document back after this time (60s, 5m) unless the agent confirms it, which it does at half of it
    /// if all is well by then
    #[arg(long = "confirm", value_name = "TIME", value_parser = whole_seconds)]
    confirm_s: Option<u32>,
    /// Refuse a document that would end more live sessions than so many; they are counted before it is applied
    #[arg(long, value_name = "SESSIONS")]
    max_dropped: Option<u64>,
    /// A file (TOML) with what options leave open: endpoints, prefix, node, ca, cert, key, user, password_file, lease_s,
    /// confirm_s, max_dropped, socket
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What is logged, for example `info` or `softgate=debug`
    #[arg(long, value_name = "FILTER", default_value = "info", env = "SOFTGATE_LOG")]
    log: String,
}

fn whole_seconds(text: &str) -> Result<u32, String> {
    ttl(text).map(Seconds::get)
}

pub(super) fn run(args: AgentArgs, socket: Option<PathBuf>) -> Result<(), Trouble> {
    let AgentArgs {
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
        config,
        log,
    } = args;
    let options = Given {
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
    };
    let file = config.map(|file| Given::from_file(&file)).transpose().map_err(Trouble::Unable)?;
    let host_name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let settings =
        Settings::new(options.or(file.unwrap_or_default()), host_name.trim_end()).map_err(Trouble::Unable)?;
    log_to_stderr(&log);
    agent::run(settings).map_err(Trouble::Unable)
}
