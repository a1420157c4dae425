//! Certificates of one's own.

use core::fmt;

use redis::{ClientTlsConfig, TlsCertificates};
use zeroize::Zeroizing;

use crate::StoreError;

/// Certificates of one's own for TLS to Redis, in PEM.
///
/// ```no_run
/// use std::fs;
/// use storm_auth_store::{RedisCertificates, RedisStore};
///
/// let certificates = RedisCertificates::new()
///     .authorities(fs::read("/etc/redis/ca.pem")?)
///     .client(fs::read("/etc/redis/client.pem")?, fs::read("/etc/redis/client.key")?);
/// let store = RedisStore::new("rediss://redis.internal")?.certificates(&certificates)?;
/// # drop(store);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Default)]
pub struct RedisCertificates {
    authorities: Option<Vec<u8>>,
    client: Option<(Vec<u8>, Zeroizing<Vec<u8>>)>,
}

impl fmt::Debug for RedisCertificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { authorities, client } = self;
        f.debug_struct("RedisCertificates")
            .field("authorities", &authorities.is_some())
            .field("client", &client.is_some())
            .finish()
    }
}

impl RedisCertificates {
    /// None: as if there were no such thing.
    pub fn new() -> Self {
        Self::default()
    }

    /// A server is trusted by these, in place of those that the system trusts.
    pub fn authorities(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.authorities = Some(pem.into());
        self
    }

    /// What is shown to a server that asks for a certificate, with those that lead from it to an authority, and its key. The key is wiped
    /// here when it goes; what the redis crate and rustls have of it is not.
    pub fn client(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.client = Some((certificate.into(), Zeroizing::new(key.into())));
        self
    }

    /// As redis takes them. It skips what is no certificate, and would trust nobody then, or show nothing.
    pub(super) fn read(&self) -> Result<TlsCertificates, StoreError> {
        let given = [self.authorities.as_ref(), self.client.as_ref().map(|(certificate, _)| certificate)];
        let begins = b"-----BEGIN CERTIFICATE-----";
        if !given.into_iter().flatten().all(|pem| pem.windows(begins.len()).any(|part| part == begins)) {
            return Err(StoreError::new(
                "there is no certificate in what was given as such; give it in PEM".to_owned(),
            ));
        }
        let client_tls = self
            .client
            .as_ref()
            .map(|(certificate, key)| ClientTlsConfig { client_cert: certificate.clone(), client_key: key.to_vec() });
        Ok(TlsCertificates { client_tls, root_cert: self.authorities.clone() })
    }
}
