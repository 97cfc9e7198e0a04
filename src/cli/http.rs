//! `softgate http`: the requests of the control socket over HTTP.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::run::log_to_stderr;
use super::{Trouble, print_json};
use crate::remote::http::{self, DEFAULT_UNIX, Settings, openapi};

/// Serve the requests of the control socket over HTTP, read-only by default
///
/// GET /v1/show/routes?vrf=blue is `softgate show routes --vrf blue`; GET /v1/openapi.json describes all of it. What this
/// process may ask of the gateway is what the [[role]] of its user may.
#[derive(Debug, clap::Args)]
pub struct HttpArgs {
    /// Listen at this Unix socket [default: /run/softgate/http.sock, unless --tcp is given]
    #[arg(long, value_name = "PATH", env = "SOFTGATE_HTTP_UNIX")]
    unix: Option<PathBuf>,
    /// The group (name or number) that may use the Unix socket beside its owner
    #[arg(long, value_name = "GROUP", env = "SOFTGATE_HTTP_GROUP")]
    group: Option<String>,
    /// Listen at this address, for clients with a certificate
    #[arg(long, value_name = "ADDRESS:PORT", env = "SOFTGATE_HTTP_TCP", requires_all = ["cert", "key", "client_ca"])]
    tcp: Option<SocketAddr>,
    /// The certificate to show over TCP (PEM)
    #[arg(long, value_name = "FILE", env = "SOFTGATE_HTTP_CERT")]
    cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE", env = "SOFTGATE_HTTP_KEY")]
    key: Option<PathBuf>,
    /// Certificates of the authorities that vouch for clients (PEM)
    #[arg(long, value_name = "FILE", env = "SOFTGATE_HTTP_CLIENT_CA")]
    client_ca: Option<PathBuf>,
    /// Let requests change something: of everybody at the Unix socket, and over TCP of those of --may-change
    #[arg(long)]
    allow_changes: bool,
    /// A client over TCP that may change something: a DNS name in the subjectAltName of its certificate
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    may_change: Vec<String>,
    /// Print the description (OpenAPI 3.1), and serve nothing
    #[arg(long)]
    openapi: bool,
    /// What is logged, for example `info` or `softgate=debug`
    #[arg(long, value_name = "FILTER", default_value = "info", env = "SOFTGATE_LOG")]
    log: String,
}

pub(super) fn run(args: HttpArgs, socket: &Path) -> Result<(), Trouble> {
    let HttpArgs { unix, group, tcp, cert, key, client_ca, allow_changes, may_change, openapi, log } = args;
    if openapi {
        return print_json(&openapi::description());
    }
    let unix = unix.or_else(|| tcp.is_none().then(|| DEFAULT_UNIX.into()));
    let socket = socket.to_owned();
    log_to_stderr(&log);
    let settings = Settings { unix, group, tcp, cert, key, client_ca, allow_changes, may_change, socket };
    http::run(settings).map_err(Trouble::Unable)
}
