//! One token request over reqwest, on a client of its own: no redirect, no retry, no decompression, no idle connection, and
//! its body read no further than the limit.

use std::error::Error as _;
use std::time::Duration;

use http::Response;
use http::uri::Scheme;
use reqwest::{ClientBuilder, Proxy, Url, redirect, retry};
use storm_auth_core::machine::TokenRequest;
use storm_auth_core::wire::response::ResponseBody;
use storm_auth_core::{Failure, FailureKind};

/// Settings where the caller has none.
pub(crate) fn ours() -> ClientBuilder {
    reqwest::Client::builder().user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")))
}

/// Without idle connections its clients belong to no runtime, so that one serves the flights of all.
#[derive(Clone, Debug)]
pub(crate) struct Transport {
    client: reqwest::Client,
    /// For plain http, where a proxy that only the environment names would read the secret.
    plain: reqwest::Client,
}

impl Transport {
    /// Longer than any request's patience, which alone decides: reqwest cannot take a caller's read timeout back.
    const NO_READ_TIMEOUT: Duration = Duration::from_secs(24 * 3_600);

    /// A transport with settings of the caller's, which are asked for twice, or with ours.
    pub(crate) fn new(settings: &dyn Fn() -> ClientBuilder) -> Result<Self, reqwest::Error> {
        // Behind it reqwest looks for none in the environment. Those that the settings name come before it.
        let no_other_proxy = Proxy::custom(|_| None::<Url>);
        Ok(Self { client: Self::client(settings())?, plain: Self::client(settings().proxy(no_other_proxy))? })
    }

    /// The settings, and after them what a token request needs to be safe.
    fn client(settings: ClientBuilder) -> Result<reqwest::Client, reqwest::Error> {
        settings
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .referer(false)
            .https_only(false) // the token URL was checked, with the exceptions that were made for it
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            .connection_verbose(false)
            .pool_max_idle_per_host(0)
            .connect_timeout(TokenRequest::CONNECT_PATIENCE)
            .read_timeout(Self::NO_READ_TIMEOUT)
            .build()
    }

    /// Sends the request and collects its answer, whatever its status.
    pub(crate) async fn send(&self, send: TokenRequest) -> Result<Response<ResponseBody>, Failure> {
        let (parts, form) = send.request.into_parts();
        let client = if parts.uri.scheme() == Some(&Scheme::HTTP) { &self.plain } else { &self.client };
        let request = client.request(parts.method, parts.uri.to_string()).headers(parts.headers);
        let request = request.body(form.into_bytes()).timeout(send.patience);
        let mut answer = request.send().await.map_err(failure)?;
        let mut body = ResponseBody::new();
        while let Some(chunk) = answer.chunk().await.map_err(failure)? {
            if body.push(&chunk).is_err() {
                break; // The rest is not read; the machine sees that, and what the status and the headers say.
            }
        }
        let mut response = Response::new(body);
        *response.status_mut() = answer.status();
        *response.headers_mut() = std::mem::take(answer.headers_mut());
        Ok(response)
    }
}

fn failure(error: reqwest::Error) -> Failure {
    let kind = match () {
        () if error.is_connect() || error.is_builder() => FailureKind::Connect,
        () if error.is_timeout() => FailureKind::Timeout,
        () => FailureKind::Io,
    };
    // The innermost cause says the most; the outer ones repeat the URL.
    let error = error.without_url();
    let mut detail = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        detail = cause.to_string();
        source = cause.source();
    }
    Failure::new(kind, detail)
}
