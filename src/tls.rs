//! Certificates of the listeners: read at the start, and again whenever their files change.
//! * What cannot be read at the start stops it. Later the certificate in use stays: the files may be half written.
//! * A connection keeps the certificate that it began with.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio_rustls::TlsAcceptor;

use crate::http::Shutdown;

/// How often the files are looked at.
pub const LOOKED_AT_EVERY: Duration = Duration::from_secs(30);

/// A certificate or its key cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the TLS certificate or key in {} cannot be used: {problem}", path.display())]
pub struct BadTls {
    path: PathBuf,
    problem: String,
}

/// A certificate and its key, as they were last read. Cheap to clone.
#[derive(Clone)]
pub struct Tls(Arc<Inner>);

struct Inner {
    certificate: PathBuf,
    key: PathBuf,
    current: Mutex<(Stamp, TlsAcceptor)>,
}

/// What tells one version of the two files from another.
type Stamp = [Option<(SystemTime, u64)>; 2];

impl Tls {
    /// Reads both files.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, BadTls> {
        // Before they are read: what changes meanwhile is seen as a change.
        let stamp = [stamp(certificate), stamp(key)];
        let current = Mutex::new((stamp, acceptor(certificate, key)?));
        Ok(Self(Arc::new(Inner { certificate: certificate.to_owned(), key: key.to_owned(), current })))
    }

    /// For a connection that begins now.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.0.current.lock().1.clone()
    }

    /// Reads the files again if they have changed; whether they had.
    pub fn look(&self) -> Result<bool, BadTls> {
        let stamp = [stamp(&self.0.certificate), stamp(&self.0.key)];
        if self.0.current.lock().0 == stamp {
            return Ok(false);
        }
        let acceptor = acceptor(&self.0.certificate, &self.0.key)?;
        *self.0.current.lock() = (stamp, acceptor);
        Ok(true)
    }

    /// Looks at the files every now and then until the server stops.
    pub async fn follow(self, shutdown: Shutdown) {
        let mut ticks = tokio::time::interval(LOOKED_AT_EVERY);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = shutdown.begun() => return,
            }
            let tls = self.clone();
            match tokio::task::spawn_blocking(move || tls.look()).await {
                Ok(Ok(false)) => {}
                Ok(Ok(true)) => {
                    tracing::info!(certificate = %self.0.certificate.display(), "a new TLS certificate is in use");
                }
                Ok(Err(error)) => tracing::error!(%error, "the TLS certificate in use stays"),
                Err(error) => tracing::error!(%error, "the TLS certificate could not be looked at"),
            }
        }
    }
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let about = std::fs::metadata(path).ok()?;
    Some((about.modified().ok()?, about.len()))
}

fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor, BadTls> {
    let bad = |path: &Path, problem: String| BadTls { path: path.to_owned(), problem };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| bad(certificate, error.to_string()))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| bad(key, error.to_string()))?;
    let mut config = config().and_then(|config| config.with_single_cert(chain, private)).map_err(
        // A certificate and a key that do not belong together are found here too.
        |error| bad(certificate, error.to_string()),
    )?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

type Unfinished = rustls::ConfigBuilder<rustls::ServerConfig, rustls::server::WantsServerCert>;

fn config() -> Result<Unfinished, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions =
        rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(versions.with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
    use tokio_rustls::TlsConnector;

    use super::*;

    /// Writes a certificate for `name`, and gives what a client has to trust.
    fn write(folder: &Path, name: &str) -> CertificateDer<'static> {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        std::fs::write(folder.join("certificate.pem"), made.cert.pem()).unwrap();
        std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        made.cert.der().clone()
    }

    async fn shows(tls: &Tls, trusted: &CertificateDer<'static>) -> bool {
        let mut roots = RootCertStore::empty();
        roots.add(trusted.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let client = client.unwrap().with_root_certificates(roots).with_no_client_auth();
        let (near, far) = tokio::io::duplex(16 * 1024);
        let name = ServerName::try_from("hearth.test").unwrap();
        let connector = TlsConnector::from(Arc::new(client));
        let (connected, _) = tokio::join!(connector.connect(name, near), tls.acceptor().accept(far));
        connected.is_ok()
    }

    // The first certificate is for longer names, so that the files differ in length whatever the disk's clock does.
    #[tokio::test]
    async fn a_new_certificate_is_taken_up_and_a_bad_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed([
            "hearth.test".to_owned(),
            "another.name.in.the.certificate.test".to_owned(),
        ]);
        let made = made.unwrap();
        let (certificate, key) = (folder.path().join("certificate.pem"), folder.path().join("key.pem"));
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let first = made.cert.der().clone();
        let tls = Tls::read(&certificate, &key).unwrap();
        assert!(!tls.look().unwrap());
        assert!(shows(&tls, &first).await);

        std::fs::write(&certificate, "half").unwrap();
        let error = tls.look().unwrap_err().to_string();
        assert!(error.contains("certificate.pem"), "{error}");
        assert!(shows(&tls, &first).await);

        let second = write(folder.path(), "hearth.test");
        assert!(tls.look().unwrap());
        assert!(shows(&tls, &second).await && !shows(&tls, &first).await);
        assert!(!tls.look().unwrap());
    }
}
