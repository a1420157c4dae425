//! The token endpoint on loopback that every contender gets its tokens from.

use std::time::Duration;

use storm_auth_tests::emulator::{Emulator, Endpoint as Side, Fault, Limiter};

/// Length of a token, in bytes: about that of the service's.
pub const TOKEN_LENGTH: usize = 1_024;

/// Tokens that are prepared; a run needs a handful.
const TOKENS: u32 = 500;

/// What goes wrong with the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It answers 500, this much later.
    ServerError(Duration),
    /// It resets every connection. One that nobody listens for could not be counted.
    Reset,
}

/// Answers whoever asks, in whatever form: the contenders authenticate in different ways, and none is measured by it.
pub struct Endpoint(Emulator);

impl Endpoint {
    /// Starts one that answers after `delay` with tokens of `lifetime`, none like another.
    pub fn start(lifetime: Duration, delay: Duration) -> Self {
        let emulator = Emulator::builder().limiter(Limiter::none()).start();
        for number in 0..TOKENS {
            let token = format!("{number:0>TOKEN_LENGTH$}");
            let seconds = lifetime.as_secs();
            let answer = format!(r#"{{"access_token":"{token}","token_type":"Bearer","expires_in":{seconds}}}"#);
            emulator.fail_next(Side::Token, 1, Fault::json(200, answer).after(delay));
        }
        Self(emulator)
    }

    /// Its URL.
    pub fn url(&self) -> String {
        self.0.token_url()
    }

    /// From now on every request meets `trouble`.
    pub fn fail(&self, trouble: Trouble) {
        self.0.heal(Side::Token);
        self.0.fail(
            Side::Token,
            match trouble {
                Trouble::ServerError(delay) => Fault::status(500).after(delay),
                Trouble::Reset => Fault::Outage,
            },
        );
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.0.token_requests()
    }

    /// Attempts at a request so far, as far as they can be told in this `trouble`: a connection that is reset at once
    /// brings no request.
    pub fn attempts(&self, trouble: Trouble) -> u64 {
        let counts = self.0.counts();
        match trouble {
            Trouble::ServerError(_) => counts.token_requests,
            Trouble::Reset => counts.token_requests + counts.token_connections,
        }
    }
}
