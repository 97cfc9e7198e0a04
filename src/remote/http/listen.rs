//! Where requests come in: a Unix socket, or TCP with certificates on both sides, and who is at the other end.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::serve::{Caller, Service};

/// Connections at once; of TCP those whose client is known.
const CONNECTIONS: usize = 128;

/// TLS handshakes at once: who has not shown who it is takes no place from those who have.
const HANDSHAKES: usize = 64;

/// How long a TLS handshake may take.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(3);

/// How long a client that is known waits for a place.
const PLACE_PATIENCE: Duration = Duration::from_secs(10);

/// How long the head of a request may take, and a connection lie idle.
const HEAD_PATIENCE: Duration = Duration::from_secs(30);

/// How long a connection may last, longer than the longest request. Then it ends after the request it is at, and if that
/// does not end either, at once.
const LIFE: Duration = Duration::from_secs(600);
const LAST_REQUEST: Duration = Duration::from_secs(60);

/// Largest head of a request.
const HEAD_BYTES: usize = 32 << 10;

/// Waits after a failure to accept: mostly there are no descriptors left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// Certificates of TCP.
pub struct Certificates<'a> {
    /// What the server shows (PEM), with those between it and the authority.
    pub cert: &'a Path,
    /// The key of that.
    pub key: &'a Path,
    /// Of the authorities that vouch for clients.
    pub client_ca: &'a Path,
}

/// TLS 1.2 or 1.3 that no client gets through without a certificate.
pub fn tls(files: &Certificates<'_>) -> Result<TlsAcceptor, String> {
    let unreadable = |file: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
    let certificates = |file: &Path| -> Result<Vec<CertificateDer<'static>>, String> {
        let all = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let all = all.map_err(|error| unreadable(file, &error))?;
        if all.is_empty() { Err(unreadable(file, &"has no certificate (PEM)")) } else { Ok(all) }
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(files.client_ca)? {
        roots.add(certificate).map_err(|error| unreadable(files.client_ca, &error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| unreadable(files.client_ca, &error))?;
    let key = PrivateKeyDer::from_pem_file(files.key).map_err(|error| unreadable(files.key, &error))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(files.cert)?, key)
        .map_err(|error| unreadable(files.cert, &error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Reads the names of those who may change something.
pub fn names(texts: &[String]) -> Result<Vec<ServerName<'static>>, String> {
    let name = |text: &String| match ServerName::try_from(text.clone()) {
        Ok(name @ ServerName::DnsName(_)) => Ok(name),
        _ => Err(format!("--may-change {text:?}: a DNS name, as in the subjectAltName of a certificate")),
    };
    texts.iter().map(name).collect()
}

/// Serves the Unix socket.
pub async fn unix(listener: std::os::unix::net::UnixListener, service: Arc<Service>) -> Result<(), String> {
    let listener = UnixListener::from_std(listener).map_err(|error| error.to_string())?;
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.map_err(|error| error.to_string())?;
        let (stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept");
                sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let uid = stream.peer_cred().map_or_else(|_| "?".to_owned(), |peer| peer.uid().to_string());
        // Whoever the mode of the socket lets in.
        let caller = Caller { name: format!("uid {uid}"), may_change: true };
        let service = Arc::clone(&service);
        tokio::spawn(async move {
            converse(stream, &service, &caller).await;
            drop(place);
        });
    }
}

/// Serves TCP.
pub async fn tcp(
    listener: std::net::TcpListener,
    tls: TlsAcceptor,
    may_change: Vec<ServerName<'static>>,
    service: Arc<Service>,
) -> Result<(), String> {
    let listener = TcpListener::from_std(listener).map_err(|error| error.to_string())?;
    let (handshakes, places) = (Arc::new(Semaphore::new(HANDSHAKES)), Arc::new(Semaphore::new(CONNECTIONS)));
    let may_change = Arc::new(may_change);
    loop {
        let shaking = Arc::clone(&handshakes).acquire_owned().await.map_err(|error| error.to_string())?;
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept");
                sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let (tls, may_change, service) = (tls.clone(), Arc::clone(&may_change), Arc::clone(&service));
        let places = Arc::clone(&places);
        tokio::spawn(async move {
            let stream = match timeout(HANDSHAKE_PATIENCE, tls.accept(stream)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::info!(%peer, %error, "TLS"),
                Err(_) => return tracing::info!(%peer, "TLS: the handshake takes too long"),
            };
            let Ok(Ok(_place)) = timeout(PLACE_PATIENCE, places.acquire_owned()).await else {
                return tracing::info!(%peer, "too many connections: closed");
            };
            drop(shaking);
            let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
            let caller = caller(peer, shown, &may_change);
            converse(stream, &service, &caller).await;
        });
    }
}

/// Who shows this certificate, which was verified.
fn caller(
    peer: SocketAddr,
    shown: Option<&CertificateDer<'_>>,
    may_change: &[ServerName<'static>],
) -> Caller {
    let parsed = shown.and_then(|certificate| ParsedCertificate::try_from(certificate).ok());
    let known = parsed.and_then(|certificate| {
        may_change.iter().find(|name| rustls::client::verify_server_name(&certificate, name).is_ok())
    });
    match known {
        Some(name) => Caller { name: format!("{} {peer}", name.to_str()), may_change: true },
        None => Caller { name: peer.to_string(), may_change: false },
    }
}

/// Answers requests until the connection ends.
async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin, service: &Service, caller: &Caller) {
    let answer = service_fn(|request| service.serve(request, caller));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), answer);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = sleep(LIFE) => {
            connection.as_mut().graceful_shutdown();
            timeout(LAST_REQUEST, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, caller = caller.name, "connection");
    }
}
