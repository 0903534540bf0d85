//! TLS on our own listener, for who has no proxy in front that does it. The certificate changes without a restart.

use crate::watched;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use tokio_rustls::TlsAcceptor;

/// A certificate and its key.
#[derive(Clone)]
pub struct Tls {
    config: Arc<RwLock<Arc<ServerConfig>>>,
}

impl Tls {
    /// Reads two PEM files, the certificate with the chain to its root, and reads them again when they change.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn from_files(certificate: &Path, key: &Path) -> Result<Tls, String> {
        let files = vec![certificate.to_owned(), key.to_owned()];
        let held = watched::read(&files)?;
        let config = Arc::new(RwLock::new(load(&held)?));
        let take = |config: &RwLock<Arc<ServerConfig>>, contents: &[Vec<u8>]| {
            *config.write().unwrap_or_else(PoisonError::into_inner) = load(contents)?;
            Ok(())
        };
        let watching = watched::watch("TLS certificate", files, held, Arc::downgrade(&config), take);
        watching.map_err(|error| format!("starting a thread: {error}"))?;
        Ok(Tls { config })
    }

    /// Takes connections with what the files say now.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn load(contents: &[Vec<u8>]) -> Result<Arc<ServerConfig>, String> {
    let [certificate, key] = contents else { return Err("a certificate and its key are two files".to_owned()) };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificate)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("the certificate: {error}"))?;
    if chain.is_empty() {
        return Err("the certificate: there is none in PEM".to_owned());
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("the key: {error}"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain, key);
    let mut config = config.map_err(|error| format!("the certificate and the key: {error}"))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
