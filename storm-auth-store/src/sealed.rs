//! Encryption around a store, with a key that nobody has to manage.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use storm_auth_core::store::{Record, StoreCommand, StoreFailure, StoreOp, StoreReply, TokenStore};

/// The length of XChaCha20-Poly1305's nonce: long enough to be drawn at random each time.
const NONCE: usize = 24;

/// Encrypts the records of another store with XChaCha20-Poly1305, by a key that is derived from the client secret: whoever has the
/// secret reads them, nobody else does, and there is no second key to manage. A record that cannot be decrypted is as if there were
/// none.
///
/// ```no_run
/// use storm_auth_store::{FileStore, Sealed};
///
/// let store = Sealed::new(FileStore::for_user()?);
/// # drop(store);
/// # Ok::<(), storm_auth_store::StoreError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Sealed<S>(S);

impl<S: TokenStore> Sealed<S> {
    /// Seals what goes into `store`.
    pub fn new(store: S) -> Self {
        Self(store)
    }
}

impl<S: TokenStore> TokenStore for Sealed<S> {
    fn perform(&self, op: &StoreOp) -> Result<StoreReply, StoreFailure> {
        let mut reply = match &op.command {
            StoreCommand::Publish { owner, record } => {
                let mut sealed = op.clone();
                sealed.command = StoreCommand::Publish { owner: *owner, record: seal(op, record)? };
                self.0.perform(&sealed)
            }
            _ => self.0.perform(op),
        }?;
        reply.record = reply.record.and_then(|record| unseal(op, &record));
        Ok(reply)
    }
}

fn seal(op: &StoreOp, record: &Record) -> Result<Record, StoreFailure> {
    let mut nonce = [0; NONCE];
    getrandom::fill(&mut nonce)
        .map_err(|error| StoreFailure::new(format!("the system gives no randomness: {error}")))?;
    let payload = Payload { msg: &record.body, aad: &bound_to(op, record) };
    let sealed = cipher(op).encrypt(&XNonce::from(nonce), payload);
    let sealed = sealed.map_err(|_| StoreFailure::new("the record is too long to be sealed"))?;
    let mut body = nonce.to_vec();
    body.extend_from_slice(&sealed);
    Ok(Record { body: body.into(), ..record.clone() })
}

fn unseal(op: &StoreOp, record: &Record) -> Option<Record> {
    let (nonce, sealed) = record.body.split_at_checked(NONCE)?;
    let payload = Payload { msg: sealed, aad: &bound_to(op, record) };
    let body = cipher(op).decrypt(&XNonce::try_from(nonce).ok()?, payload).ok()?;
    Some(Record { body: body.into(), ..record.clone() })
}

fn cipher(op: &StoreOp) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(op.sealing_key().expose().into())
}

/// What stands beside the record in the clear, so that no part of another one can take its place.
fn bound_to(op: &StoreOp, record: &Record) -> Vec<u8> {
    let times = format!(" {} {}", record.order, record.expires_at.as_millis());
    [op.record.as_bytes(), times.as_bytes()].concat()
}
