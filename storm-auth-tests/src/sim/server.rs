//! What stands behind the limiter: it knows which tokens it issued, when they die, which were revoked, and the current secrets.

use bytes::Bytes;
use http::{Response, StatusCode, header};

/// A token as the server remembers it.
#[derive(Clone, Debug)]
pub(super) struct Issued {
    /// The client whose token it is.
    pub(super) client: usize,
    /// From then on the API takes it no more.
    pub(super) dies_at: u64,
    /// Whether the answer named a lifetime, and no longer one than the true one.
    pub(super) honest: bool,
    pub(super) revoked: bool,
}

/// What an answer means to who reads it, by the rules of the protocol and not by the machine's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Meaning {
    /// A token that lives for so many milliseconds, as far as its reader can know.
    Token { serial: usize, life: u64 },
    /// 429 or 503.
    Throttled,
    /// The configuration is refused.
    Refused,
    /// The secret is not this client's.
    WrongSecret,
    /// Nothing that can be used.
    Unusable,
}

/// An answer on its way.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) meaning: Meaning,
    /// How long its `Retry-After` asks to be left alone, in milliseconds; 0 without one.
    pub(super) retry_after: u64,
    pub(super) response: Response<Bytes>,
}

/// What the endpoint is like for a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mood {
    Well,
    /// Nobody listens.
    Down,
    /// It takes requests and says nothing.
    Silent,
    /// It answers this status, and a `Retry-After` of so many seconds where that is not zero.
    Sick(u16, u64),
    /// It answers what cannot be read.
    Garbled,
}

#[derive(Debug)]
pub(super) struct Server {
    /// In milliseconds.
    pub(super) lifetime: u64,
    pub(super) mood: Mood,
    /// The current secret of each client, by its number.
    pub(super) secrets: Vec<u64>,
    pub(super) issued: Vec<Issued>,
    /// The API takes no token at all until then.
    pub(super) rejecting_until: u64,
}

/// How a lifetime stands in an answer, and what it means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Told {
    Truth,
    Zero,
    OneSecond,
    Short(u64),
    Huge,
    Missing,
    Text,
}

impl Server {
    /// A token for `client`, at the true time `at`.
    pub(super) fn issue(&mut self, client: usize, told: Told, at: u64) -> Answer {
        let serial = self.issued.len();
        let seconds = self.lifetime / 1_000;
        // What the answer says, what R15 makes of that, and how long the token truly lives.
        let (text, life, lives) = match told {
            Told::Truth => (seconds.to_string(), self.lifetime, self.lifetime),
            Told::Text => (format!("\"{seconds}\""), self.lifetime, self.lifetime),
            Told::Zero => ("0".to_owned(), 0, 0),
            Told::OneSecond => ("1".to_owned(), 1_000, 1_000),
            Told::Short(seconds) => (seconds.to_string(), seconds * 1_000, seconds * 1_000),
            Told::Huge => ("1e12".to_owned(), 86_400_000, 7 * 86_400_000),
            Told::Missing => ("null".to_owned(), 300_000, self.lifetime),
        };
        let honest = lives >= life && life > 0;
        self.issued.push(Issued { client, dies_at: at + lives, honest, revoked: false });
        let body = format!(r#"{{"access_token":"{}","expires_in":{text},"token_type":"Bearer"}}"#, token(serial));
        Answer { meaning: Meaning::Token { serial, life }, retry_after: 0, response: json(200, body) }
    }

    /// Whether the API takes this token.
    pub(super) fn takes(&self, serial: usize, at: u64) -> bool {
        let token = &self.issued[serial];
        at >= self.rejecting_until && at < token.dies_at && !token.revoked
    }

    pub(super) fn refuse(&self) -> Answer {
        let response = json(400, r#"{"error":"invalid_client"}"#.to_owned());
        Answer { meaning: Meaning::WrongSecret, retry_after: 0, response }
    }

    /// An answer with only a status, and a `Retry-After` where `seconds` is not zero.
    pub(super) fn status(status: u16, seconds: u64) -> Answer {
        let mut response = Response::new(Bytes::from_static(b"<html>no</html>"));
        *response.status_mut() = StatusCode::from_u16(status).expect("the simulator's statuses are HTTP's");
        if seconds > 0 {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        let meaning = match status {
            429 | 503 => Meaning::Throttled,
            300..=399 | 400 | 401 | 404 | 405 => Meaning::Refused,
            _ => Meaning::Unusable,
        };
        Answer { meaning, retry_after: seconds.min(3_600) * 1_000, response }
    }

    /// Something that is no answer, in one of several ways.
    pub(super) fn garbage(which: u8) -> Answer {
        let body = match which % 5 {
            0 => "<html>a proxy's page</html>",
            1 => "",
            2 => r#"{"access_token":"","expires_in":600}"#,
            3 => r#"["access_token","token-0000000000"]"#,
            _ => r#"{"access_token":"two words","expires_in":600}"#,
        };
        Answer { meaning: Meaning::Unusable, retry_after: 0, response: json(200, body.to_owned()) }
    }
}

/// The text of a token.
pub(super) fn token(serial: usize) -> String {
    format!("token-{serial:010}")
}

/// Which token a text is; `None` when the server issued none like it.
pub(super) fn serial(text: &str) -> Option<usize> {
    text.strip_prefix("token-")?.parse().ok()
}

fn json(status: u16, body: String) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = StatusCode::from_u16(status).expect("the simulator's statuses are HTTP's");
    response
}
