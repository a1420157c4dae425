//! Tokens in the recorded shape: signing and checking. The RSA is aws-lc's.

use std::{fmt::Write as _, sync::OnceLock};

use aws_lc_rs::{
    digest,
    rand::SystemRandom,
    rsa,
    signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, UnparsedPublicKey},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

/// The size of the RSA key that signs the tokens. It is made once per process, beside the emulator's start; the first
/// token waits for it at worst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeySize {
    /// The default: made in about 0.2 s. The signature has 342 characters, and so a token about 700.
    #[default]
    Rsa2048,
    /// The recorded size: a signature of 683 characters, a token of about 1,043. Made in 0.4 to 2 s.
    Rsa4096,
}

/// A key with its name. The private half never leaves the process, nor is it written anywhere.
#[derive(Debug)]
pub(super) struct Key {
    pair: rsa::KeyPair,
    thumbprint: [u8; 20],
}

impl Key {
    /// The process's key of this size, if it was made already.
    pub(super) fn ready(size: KeySize) -> Option<&'static Key> {
        Self::cell(size).get()
    }

    /// The process's key of this size. Making it keeps the processor busy.
    pub(super) fn make(size: KeySize) -> &'static Key {
        Self::cell(size).get_or_init(|| {
            let size = match size {
                KeySize::Rsa2048 => rsa::KeySize::Rsa2048,
                KeySize::Rsa4096 => rsa::KeySize::Rsa4096,
            };
            let pair = rsa::KeyPair::generate(size).expect("aws-lc makes keys of 2048 and 4096 bits");
            let mut thumbprint = [0; 20];
            let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, pair.public_key().as_ref());
            thumbprint.copy_from_slice(hash.as_ref());
            Key { pair, thumbprint }
        })
    }

    fn cell(size: KeySize) -> &'static OnceLock<Key> {
        static RSA_2048: OnceLock<Key> = OnceLock::new();
        static RSA_4096: OnceLock<Key> = OnceLock::new();
        match size {
            KeySize::Rsa2048 => &RSA_2048,
            KeySize::Rsa4096 => &RSA_4096,
        }
    }

    fn id(&self) -> String {
        self.thumbprint.iter().fold(String::with_capacity(40), |mut id, byte| {
            let _ = write!(id, "{byte:02X}");
            id
        })
    }

    /// The token that says `claims`.
    ///
    /// RS256 is deterministic and the recorded payload counts in seconds, so that two tokens of one second would be
    /// the same bytes. Here each is its own: the last eight bytes of `x5t` are the token's serial number, which leaves the
    /// shape and the length as recorded, and tells the API which token it looks at.
    pub(super) fn sign(&self, serial: u64, claims: &Claims) -> String {
        let mut x5t = self.thumbprint;
        x5t[12..].copy_from_slice(&serial.to_be_bytes());
        let header =
            Header { alg: "RS256".into(), kid: self.id(), typ: "at+jwt".into(), x5t: URL_SAFE_NO_PAD.encode(x5t) };
        let mut token = String::with_capacity(1_100);
        URL_SAFE_NO_PAD.encode_string(json(&header), &mut token);
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(json(claims), &mut token);
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), token.as_bytes(), &mut signature)
            .expect("the buffer has the modulus's length");
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        token
    }

    /// The serial number and the claims of `token`, if this key signed it.
    pub(super) fn verify(&self, token: &str) -> Result<(u64, Claims), Unverified> {
        let (signed, signature) = token.rsplit_once('.').ok_or(Unverified::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(Unverified::Malformed)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| Unverified::Malformed)?;
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, self.pair.public_key().as_ref())
            .verify(signed.as_bytes(), &signature)
            .map_err(|_| Unverified::Signature)?;
        let header: Header = parse(header)?;
        let serial = URL_SAFE_NO_PAD.decode(header.x5t).map_err(|_| Unverified::Malformed)?;
        let serial = serial.last_chunk().ok_or(Unverified::Malformed)?;
        Ok((u64::from_be_bytes(*serial), parse(payload)?))
    }
}

/// Why a token is not one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unverified {
    Malformed,
    Signature,
}

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    alg: String,
    kid: String,
    typ: String,
    x5t: String,
}

/// A token's payload, in the recorded order. Times are seconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claims {
    pub(super) nbf: u64,
    pub(super) exp: u64,
    pub(super) iss: String,
    pub(super) aud: String,
    pub(super) client_id: String,
    pub(super) scope: Vec<String>,
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings and integers are JSON")
}

fn parse<T: serde::de::DeserializeOwned>(part: &str) -> Result<T, Unverified> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| Unverified::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| Unverified::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims() -> Claims {
        Claims {
            nbf: 1_700_000_000,
            exp: 1_700_003_600,
            iss: "http://127.0.0.1:40000/identity/1.0".into(),
            aud: "http://127.0.0.1:40000/identity/1.0/resources".into(),
            client_id: "storm-auth".into(),
            scope: vec!["playground".into()],
        }
    }

    #[test]
    fn a_token_has_the_recorded_shape() {
        let key = Key::make(KeySize::Rsa4096);
        let token = key.sign(7, &claims());
        let parts: Vec<_> = token.split('.').collect();
        assert_eq!(parts.len(), 3);
        assert_eq!(parts[2].len(), 683);
        assert!((1_000..1_100).contains(&token.len()), "{}", token.len());
        let header: serde_json::Value = parse(parts[0]).unwrap();
        assert_eq!(header["alg"], "RS256");
        assert_eq!(header["typ"], "at+jwt");
        assert_eq!(header["kid"].as_str().unwrap().len(), 40);
        assert_eq!(header["x5t"].as_str().unwrap().len(), 27);
        let payload = String::from_utf8(URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
        assert_eq!(
            payload,
            "{\"nbf\":1700000000,\"exp\":1700003600,\"iss\":\"http://127.0.0.1:40000/identity/1.0\",\
             \"aud\":\"http://127.0.0.1:40000/identity/1.0/resources\",\"client_id\":\"storm-auth\",\"scope\":[\"playground\"]}"
        );
        assert_eq!(key.verify(&token), Ok((7, claims())));
    }

    #[test]
    fn tokens_of_one_second_differ_and_a_foreign_or_changed_one_is_refused() {
        let key = Key::make(KeySize::Rsa2048);
        let (one, two) = (key.sign(1, &claims()), key.sign(2, &claims()));
        assert_ne!(one, two);
        assert_eq!(one.len(), two.len());

        assert_eq!(Key::make(KeySize::Rsa4096).verify(&one), Err(Unverified::Signature));
        let (_, signature) = one.rsplit_once('.').unwrap();
        let (signed, _) = two.rsplit_once('.').unwrap();
        assert_eq!(key.verify(&format!("{signed}.{signature}")), Err(Unverified::Signature));
        for broken in ["", "x", "a.b", "..", "a.b.c.d", "é.é.é"] {
            assert!(key.verify(broken).is_err(), "{broken}");
        }
    }
}
