//! TLS as the one who dials has it: the files, and what it means when it fails.

use crate::dial::{Dial, DialError, read};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use std::error::Error;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// Longest wait for each step of finding out why a connection failed.
const PROBE_DEADLINE: Duration = Duration::from_millis(500);

/// What the files of a [`Dial`] hold, as PEM.
pub struct Files {
    ca: Option<Vec<u8>>,
    own: Option<(Vec<u8>, Vec<u8>)>,
}

impl Files {
    /// Reads them.
    pub fn read(dial: &Dial) -> Result<Self, DialError> {
        let own = match (&dial.cert, &dial.key) {
            (Some(cert), Some(key)) => Some((read_pem(cert)?, read_pem(key)?)),
            (None, None) => None,
            _ => {
                return Err(DialError::Flags(
                    "--tls-cert and --tls-key belong together: give both or neither".to_owned(),
                ));
            }
        };
        let ca = dial.ca.as_deref().map(read_pem).transpose()?;
        Ok(Self { ca, own })
    }

    /// For connections.
    pub fn config(&self) -> ClientTlsConfig {
        let tls = ClientTlsConfig::new();
        let tls = match &self.ca {
            Some(pem) => tls.ca_certificate(Certificate::from_pem(pem)),
            None => tls.with_native_roots(),
        };
        match &self.own {
            Some((cert, key)) => tls.identity(Identity::from_pem(cert, key)),
            None => tls,
        }
    }

    /// For [`refusal`]; also finds out whether the files can be used.
    pub fn probe(&self, url: &str) -> Result<Arc<ClientConfig>, DialError> {
        // Other parts of the program may have brought another provider; the first one serves all.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let unusable = |reason: String| DialError::Certificates {
            url: url.to_owned(),
            reason,
        };
        let parsed = |pem: &[u8]| -> Result<Vec<CertificateDer<'static>>, DialError> {
            let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
            let none = "--tls-ca and --tls-cert have to hold certificates";
            let parsed = parsed.map_err(|error| unusable(error.to_string()))?;
            match parsed.is_empty() {
                true => Err(unusable(none.to_owned())),
                false => Ok(parsed),
            }
        };
        let mut roots = RootCertStore::empty();
        match &self.ca {
            Some(pem) => roots.add_parsable_certificates(parsed(pem)?),
            None => roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs),
        };
        let builder = ClientConfig::builder().with_root_certificates(roots);
        let Some((cert, key)) = &self.own else {
            return Ok(Arc::new(builder.with_no_client_auth()));
        };
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|_| unusable("--tls-key has to hold a private key".to_owned()))?;
        let config = builder.with_client_auth_cert(parsed(cert)?, key);
        let config = config.map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                unusable("--tls-key is not the key of --tls-cert".to_owned())
            }
            other => unusable(other.to_string()),
        })?;
        Ok(Arc::new(config))
    }
}

/// Reads a file that should hold PEM; without this check a wrong file would mean that no
/// certificate is trusted, and be found out much later.
fn read_pem(path: impl AsRef<Path>) -> Result<Vec<u8>, DialError> {
    let path = path.as_ref();
    let bytes = read(path)?;
    let begins = b"-----BEGIN ";
    if !bytes.windows(begins.len()).any(|part| part == begins) {
        return Err(DialError::Flags(format!(
            "{} is no PEM file: it should hold a line that begins with -----BEGIN",
            path.display()
        )));
    }
    Ok(bytes)
}

fn connect(host: &str, port: u16) -> std::io::Result<TcpStream> {
    let address = (bare(host), port).to_socket_addrs()?.next();
    let address = address.ok_or(ErrorKind::NotFound)?;
    let stream = TcpStream::connect_timeout(&address, PROBE_DEADLINE)?;
    stream.set_read_timeout(Some(PROBE_DEADLINE))?;
    Ok(stream)
}

/// An IPv6 address without the brackets that it has in a URL.
fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

/// Whether a server takes the beginning of an HTTP/2 connection for a broken TLS record and says so
/// with an alert. Five bytes are as long as a record's header, so that nothing is left unread that
/// would reset the connection before the alert is seen.
pub fn answers(host: &str, port: u16) -> bool {
    const ALERT: [u8; 2] = [21, 3];
    let answer = || -> std::io::Result<[u8; 2]> {
        let mut stream = connect(host, port)?;
        stream.write_all(b"PRI *")?;
        let mut begin = [0; 2];
        stream.read_exact(&mut begin)?;
        Ok(begin)
    };
    answer().is_ok_and(|begin| begin == ALERT)
}

/// Why a server turns us away after the handshake, as it does with client certificates in TLS 1.3:
/// a request that is on its way by then resets the connection, so nothing is sent here but the
/// handshake.
pub fn refusal(host: &str, port: u16, config: &Arc<ClientConfig>) -> Option<rustls::Error> {
    let name = ServerName::try_from(bare(host).to_owned()).ok()?;
    let mut session = ClientConnection::new(config.clone(), name).ok()?;
    let mut stream = connect(host, port).ok()?;
    let mut tls = rustls::Stream::new(&mut session, &mut stream);
    // A server that lets us in says nothing more until it is asked, and the time runs out.
    let error = tls.read_exact(&mut [0; 1]).err()?;
    cause(&error).cloned()
}

/// The TLS error among the causes of an error.
pub fn cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // `source` of an I/O error skips the error that it was made of.
        let inner = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        if let Some(found) = inner.and_then(|inner| cause(inner)) {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// What a TLS error means for whoever runs the command, and what to do about it.
pub fn reason(error: &rustls::Error, url: &str) -> String {
    use rustls::{CertificateError as Bad, Error as Tls, InvalidMessage};
    let text = match error {
        Tls::InvalidCertificate(bad) => match bad {
            Bad::Expired | Bad::ExpiredContext { .. } => {
                "its certificate has expired: the operator has to renew it (or this machine's clock is wrong)"
            }
            Bad::NotValidYet | Bad::NotValidYetContext { .. } => {
                "its certificate is not valid yet: check the clocks of both machines"
            }
            // A bad signature is that of another authority with the same name.
            Bad::UnknownIssuer | Bad::BadSignature => {
                "its certificate comes from an authority that is not trusted here: give that authority's with --tls-ca"
            }
            Bad::NotValidForName | Bad::NotValidForNameContext { .. } => {
                "its certificate is for another name: use the name in it as the address, or have one made for this name"
            }
            other => return format!("its certificate is not accepted: {other}"),
        },
        Tls::InvalidMessage(InvalidMessage::InvalidContentType) => {
            let plain = url.replacen("https://", "http://", 1);
            return format!("it does not speak TLS: write {plain}");
        }
        Tls::AlertReceived(alert) => return alert_reason(&format!("{alert:?}")),
        other => return format!("TLS failed: {other}"),
    };
    text.to_owned()
}

/// What it means that the other side broke off with an alert.
fn alert_reason(text: &str) -> String {
    let has = |name: &str| text.contains(name);
    let reason = if has("CertificateRequired") {
        "it asks for a client certificate: give --tls-cert and --tls-key"
    } else if has("CertificateExpired") {
        "our certificate has expired: get a new one for --tls-cert"
    } else if has("UnknownCA") || has("BadCertificate") || has("DecryptError") {
        "it does not accept our certificate: give one from the authority that it trusts (its --tls-client-ca)"
    } else {
        return format!("it broke off the TLS handshake: {text}");
    };
    reason.to_owned()
}
