//! `softgate http`: the requests of the control socket over HTTP/1.1, as REST and JSON.
//!
//! A process of its own: no HTTP server lives in a gateway. What can be asked is read off [`crate::control::Request`]
//! ([`operations`]), the description in OpenAPI too ([`openapi`]). Who gets in is a matter of the listener ([`listen`]): the
//! mode of a Unix socket, or a certificate. What the process may ask of the gateway is what the `[[role]]` of its user
//! may; it changes nothing unless it was started to.

mod listen;
pub mod openapi;
pub mod operations;
mod serve;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use crate::control::listen_alone;
use listen::Certificates;
use serve::Service;

/// Where the Unix socket is unless told otherwise.
pub const DEFAULT_UNIX: &str = "/run/softgate/http.sock";

/// What to serve, where, and to whom.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The Unix socket; at least one of this and `tcp` is there.
    pub unix: Option<PathBuf>,
    /// The group, by name or number, that may use it beside its owner.
    pub group: Option<String>,
    /// The TCP address.
    pub tcp: Option<SocketAddr>,
    /// What TCP shows (PEM), its key, and the authorities that vouch for clients.
    pub cert: Option<PathBuf>,
    /// See `cert`.
    pub key: Option<PathBuf>,
    /// See `cert`.
    pub client_ca: Option<PathBuf>,
    /// Whether anybody may change something.
    pub allow_changes: bool,
    /// Who over TCP may: DNS names of certificates.
    pub may_change: Vec<String>,
    /// The control socket of the gateway.
    pub socket: PathBuf,
}

/// Serves until SIGTERM or SIGINT.
pub fn run(settings: Settings) -> Result<(), String> {
    let Settings { unix, group, tcp, cert, key, client_ca, allow_changes, may_change, socket } = settings;
    let may_change = listen::names(&may_change)?;
    let tls = match (&tcp, &cert, &key, &client_ca) {
        (Some(_), Some(cert), Some(key), Some(client_ca)) => {
            Some(listen::tls(&Certificates { cert, key, client_ca })?)
        }
        (None, None, None, None) => None,
        (Some(_), ..) => {
            return Err(
                "--tcp: only with certificates on both sides: give --cert, --key and --client-ca".into()
            );
        }
        (None, ..) => return Err("--cert, --key and --client-ca are of --tcp".into()),
    };
    match (tcp.is_some(), allow_changes, may_change.is_empty()) {
        (true, true, true) => {
            return Err(
                "--allow-changes over TCP: who may? Give --may-change NAME, a DNS name in the certificate"
                    .into(),
            );
        }
        (_, false, false) => return Err("--may-change goes with --allow-changes".into()),
        (false, _, false) => return Err("--may-change is of --tcp".into()),
        _ => {}
    }
    let unix = unix.map(|path| listen_alone(&path, group.as_deref()).map(|listening| (path, listening)));
    let unix = unix.transpose().map_err(|error| error.to_string())?;
    let tcp = tcp.map(|address| {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok((listener.local_addr()?, listener))
    });
    let tcp = tcp.transpose().map_err(|error: std::io::Error| format!("--tcp: cannot listen: {error}"))?;

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    let service = Arc::new(Service::new(socket, allow_changes));
    let done = runtime.block_on(async {
        let hear = |kind| signal(kind).map_err(|error| format!("signals: {error}"));
        let (mut term, mut int) = (hear(SignalKind::terminate())?, hear(SignalKind::interrupt())?);
        let (path, listener) = unix.map_or((None, None), |(path, (listener, lock))| (Some((path, lock)), Some(listener)));
        let at_unix = async {
            match listener {
                Some(listener) => listen::unix(listener, Arc::clone(&service)).await,
                None => std::future::pending().await,
            }
        };
        let (address, listener) = tcp.map_or((None, None), |(address, listener)| (Some(address), Some(listener)));
        let at_tcp = async {
            match (listener, tls) {
                (Some(listener), Some(tls)) => listen::tcp(listener, tls, may_change, Arc::clone(&service)).await,
                _ => std::future::pending().await,
            }
        };
        let unix = path.as_ref().map(|(path, _)| path.display());
        tracing::info!(unix = unix.map(tracing::field::display), tcp = ?address, allow_changes, "softgate http ready");
        let done = tokio::select! {
            done = at_unix => done,
            done = at_tcp => done,
            _ = term.recv() => Ok(()),
            _ = int.recv() => Ok(()),
        };
        if let Some((path, _lock)) = path {
            let _ = std::fs::remove_file(path);
        }
        done
    });
    // A gateway that is in the middle of an answer is not waited for.
    runtime.shutdown_background();
    done
}
