//! TLS of health checks (RFC 8446, RFC 5246), by rustls: bytes in, bytes out, and what was said within.

use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, ClientConnection, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::{Reason, http};
use crate::config::HealthCheck;

/// How servers are spoken to. With authorities, in PEM, their certificates have to be right; `None`: these are none.
pub(super) fn config(authorities: Option<&[u8]>) -> Option<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().ok()?;
    let mut config = match authorities {
        None => {
            let any = Arc::new(AnyCertificate(provider));
            builder.dangerous().with_custom_certificate_verifier(any).with_no_client_auth()
        }
        Some(authorities) => {
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(authorities) {
                roots.add(certificate.ok()?).ok()?;
            }
            if roots.is_empty() {
                return None;
            }
            builder.with_root_certificates(roots).with_no_client_auth()
        }
    };
    // Every probe shows that a client without a past gets through.
    config.resumption = Resumption::disabled();
    Some(Arc::new(config))
}

/// Takes whatever a server shows: health checks ask whether it works, not who it is, unless told to.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The client's side of one connection.
pub(super) struct Session {
    inner: ClientConnection,
    /// What is to be sent.
    pub(super) outgoing: Vec<u8>,
}

impl Session {
    /// Begins one in which `request` is said. `None`: the host has no name that TLS knows.
    pub(super) fn new(
        config: &Arc<ClientConfig>,
        check: &HealthCheck,
        peer: IpAddr,
        request: &[u8],
    ) -> Option<Session> {
        let name = match &check.host {
            Some(host) => ServerName::try_from(host.name().to_owned()).ok()?,
            None => ServerName::from(peer),
        };
        let mut inner = ClientConnection::new(Arc::clone(config), name).ok()?;
        inner.writer().write_all(request).ok()?;
        let mut session = Session { inner, outgoing: Vec::new() };
        session.collect();
        Some(session)
    }

    fn collect(&mut self) {
        while self.inner.wants_write() && self.inner.write_tls(&mut self.outgoing).is_ok() {}
    }

    /// Takes what has come; what is within goes to `answer`. `Some`: that is all that there is to know.
    pub(super) fn take(
        &mut self,
        mut bytes: &[u8],
        answer: &mut http::Answer,
        check: &HealthCheck,
    ) -> Option<Reason> {
        while !bytes.is_empty() {
            let is_tls = matches!(self.inner.read_tls(&mut bytes), Ok(1..))
                && self.inner.process_new_packets().is_ok();
            // Even then there may be an alert for the server.
            self.collect();
            let mut text = [0; 1024];
            loop {
                match self.inner.reader().read(&mut text) {
                    Ok(0) => return Some(answer.end()),
                    Ok(len) => {
                        let said = answer.take(&text[..len], check);
                        if said.is_some() {
                            return said;
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(_) => return Some(Reason::Tls),
                }
            }
            if !is_tls {
                return Some(Reason::Tls);
            }
        }
        None
    }
}
