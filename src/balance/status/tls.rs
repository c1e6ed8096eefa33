//! TLS (rustls, with ring): whom to believe. By default what the system believes, as other programs here do.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::{self, ClientConfig, DigitallySignedStruct, RootCertStore};

use super::Failure;
use super::answer::unreached;

/// Whose certificates are good.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// Those of whom this system believes.
    #[default]
    System,
    /// Those signed by one in this PEM file.
    File(PathBuf),
    /// All: `verify = false`.
    All,
}

/// What one TLS client needs; the same for all its connections.
#[derive(Clone)]
pub(super) struct Tls {
    connector: Result<TlsConnector, String>,
    /// The name that the certificate has to have; `None`: the address.
    name: Option<ServerName<'static>>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Tls {
    /// What is wrong with the file of `trust` is told at the first connection; `vipa check` tells it before.
    pub(super) fn new(trust: &Trust, name: Option<&str>) -> Tls {
        static SYSTEM: OnceLock<Result<TlsConnector, String>> = OnceLock::new();
        let connector = match trust {
            Trust::System => SYSTEM.get_or_init(|| Ok(verifying(system_roots()?))).clone(),
            Trust::File(path) => roots(path).map(verifying),
            Trust::All => Ok(TlsConnector::from(Arc::new(trusting()))),
        };
        let name = name.and_then(|name| ServerName::try_from(name.to_owned()).ok());
        Tls { connector, name }
    }

    /// Greets the server at the other end of `stream`, whose address is `to`.
    pub(super) async fn connect(
        &self,
        to: IpAddr,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, Failure> {
        let connector = self.connector.as_ref().map_err(|why| Failure::Unreached(why.clone()))?;
        let name = self.name.clone().unwrap_or_else(|| ServerName::IpAddress(to.into()));
        connector.connect(name, stream).await.map_err(|error| unreached(&error))
    }
}

/// May `name` stand in a certificate?
pub fn is_name(name: &str) -> bool {
    ServerName::try_from(name).is_ok()
}

/// The certificates in a PEM file.
///
/// # Errors
/// It cannot be read, or holds none: in words.
pub fn roots(path: &Path) -> Result<RootCertStore, String> {
    let told = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = read_small(path).map_err(|error| told(&error))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
        let certificate = certificate.map_err(|error| told(&error))?;
        roots.add(certificate).map_err(|error| told(&error))?;
    }
    if roots.is_empty() { Err(told(&"it holds no certificate")) } else { Ok(roots) }
}

/// A file of a configuration's: regular, of at most a megabyte of text.
///
/// # Errors
/// It cannot be read, or is none.
pub fn read_small(path: &Path) -> io::Result<String> {
    const LARGEST: u64 = 1 << 20;
    // A pipe that nobody writes to must not hold the reader.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > LARGEST {
        return Err(io::Error::other("it is no regular file of at most a megabyte"));
    }
    let mut text = String::new();
    file.take(LARGEST).read_to_string(&mut text)?;
    Ok(text)
}

fn system_roots() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    // Systems ship certificates that are none by today's rules: those are passed over, as others do.
    roots.add_parsable_certificates(found.certs);
    match found.errors.first() {
        Some(error) if roots.is_empty() => Err(format!("the system's certificates: {error}")),
        None if roots.is_empty() => Err("this system has no certificates; give `ca`".to_owned()),
        _ => Ok(roots),
    }
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(ring::default_provider())).clone()
}

fn builder() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring has the ciphers of TLS 1.2 and 1.3")
}

fn verifying(roots: RootCertStore) -> TlsConnector {
    let config = builder().with_root_certificates(roots).with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

fn trusting() -> ClientConfig {
    let verifier = Arc::new(All(provider()));
    builder().dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
}

/// Takes every certificate; that the other end holds its key is still proved.
#[derive(Debug)]
struct All(Arc<CryptoProvider>);

impl ServerCertVerifier for All {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
