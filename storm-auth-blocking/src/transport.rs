//! One token request over ureq, on the thread that asks for it.
//!
//! Nothing is decided here: no retry, no redirect, no look at the status. The caller's settings say how the host is reached
//! (TLS, proxy, address family, connector and resolver), and [`forced`] says the rest.

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::uri::Scheme;
use http::{HeaderValue, Request, Response, header};
use storm_auth_core::machine;
use storm_auth_core::wire::response::ResponseBody;
use storm_auth_core::{Failure, FailureKind};
use ureq::config::{Config, ConfigBuilder};
use ureq::typestate::AgentScope;
use ureq::{Agent, Error, SendBody, Timeout};
use zeroize::Zeroizing;

/// Makes an agent of a configuration: [`Agent::new_with_config`], unless the caller has a connector or a resolver of its own.
pub(crate) type MakeAgent = Arc<dyn Fn(Config) -> Agent + Send + Sync>;

/// Sends token requests, each over a connection of its own.
pub(crate) struct Transport {
    agent: Agent,
    make: MakeAgent,
    cancelled: AtomicBool,
}

/// What the caller's settings start from.
pub(crate) fn settings() -> ConfigBuilder<AgentScope> {
    let settings = Agent::config_builder().user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")));
    // ureq takes native-tls only when told to, and panics over https when it is left with a rustls that it was built without.
    #[cfg(all(feature = "native-tls", not(feature = "rustls")))]
    let settings =
        settings.tls_config(ureq::tls::TlsConfig::builder().provider(ureq::tls::TlsProvider::NativeTls).build());
    settings
}

/// What is not the caller's to choose.
fn forced(settings: ConfigBuilder<AgentScope>) -> Config {
    settings
        .http_status_as_error(false) // loses the body, which says what is wrong
        .https_only(false) // the token URL was checked, with the exceptions that were made for it
        .max_redirects(0)
        .max_redirects_will_error(false)
        .save_redirect_history(false)
        .max_idle_connections(0)
        .max_idle_connections_per_host(0)
        .max_response_header_size(Transport::HEAD)
        .input_buffer_size(Transport::BUFFER)
        .output_buffer_size(2 * Transport::BUFFER) // room for the longest URL that `http` takes
        .timeout_resolve(Some(machine::TokenRequest::CONNECT_PATIENCE))
        .timeout_connect(Some(machine::TokenRequest::CONNECT_PATIENCE))
        // The request's patience is the only other one.
        .timeout_global(None)
        .timeout_per_call(None)
        .timeout_per_read(None)
        .timeout_per_write(None)
        .timeout_send_request(None)
        .timeout_send_body(None)
        .timeout_recv_response(None)
        .timeout_recv_body(None)
        .build()
}

impl Transport {
    /// The longest head of an answer, in bytes.
    const HEAD: usize = 32 * 1024;
    /// How much is read from the socket at once. A head has to fit in.
    const BUFFER: usize = 64 * 1024;
    /// ureq adds a timeout to an `Instant`, which panics past the clock's end.
    pub(crate) const LONGEST: Duration = Duration::from_secs(86_400);

    /// A transport with the caller's settings, so far as they are the caller's.
    ///
    /// The agent that `make` returns has to be a new one: [`cancel`](Self::cancel) shuts it down.
    pub(crate) fn new(settings: ConfigBuilder<AgentScope>, make: MakeAgent) -> Self {
        let agent = make(forced(settings));
        Self { agent, make, cancelled: AtomicBool::new(false) }
    }

    /// Another one with the same settings.
    pub(crate) fn another(&self) -> Self {
        let agent = (self.make)(self.agent.config().clone());
        Self { agent, make: self.make.clone(), cancelled: AtomicBool::new(false) }
    }

    /// Sends a request and reads the whole answer, whatever its status.
    pub(crate) fn send(&self, send: machine::TokenRequest) -> Result<Response<ResponseBody>, Failure> {
        let machine::TokenRequest { request, patience, .. } = send;
        let (head, form) = request.into_parts();
        let mut form = Form { rest: form.as_bytes(), begun: false };
        let answer = self.exchange(Request::from_parts(head, ()), &mut form, patience);
        // What came of it counts for nothing then: a body that ends with the connection looks whole when we cut it.
        if self.cancelled.load(Ordering::Acquire) {
            return Err(Failure::new(FailureKind::Aborted, "cancelled"));
        }
        answer.map_err(|error| failure(error, form.begun))
    }

    /// Ends the requests under way, and fails later ones. They end at once; a name look-up or a TCP connect that is under way
    /// ends by its own timeout, and an answer that comes without pause and without end, in interim answers or trailers, by the
    /// request's patience: a socket that is shut down still brings what is sent.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        self.agent.clone().shutdown();
    }

    fn exchange(
        &self,
        request: Request<()>,
        form: &mut Form<'_>,
        patience: Duration,
    ) -> Result<Response<ResponseBody>, Error> {
        // With the length in a header ureq sends the bytes as they are; chunked, they would pass through its trace log.
        let length = HeaderValue::from(form.rest.len());
        let mut request = request.map(|()| SendBody::from_reader(form));
        request.headers_mut().insert(header::CONTENT_LENGTH, length);
        request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        // Over plain http, a proxy that only the environment names would read the secret.
        let exposed = request.uri().scheme() == Some(&Scheme::HTTP);
        let proxy = self.agent.config().proxy().filter(|proxy| !(exposed && proxy.is_from_env())).cloned();
        let request = self.agent.configure_request(request).proxy(proxy);
        let request = request.timeout_global(Some(patience.min(Self::LONGEST))).build();

        let (head, body) = self.agent.run(request)?.into_parts();
        let mut reader = body.into_reader();
        let mut body = ResponseBody::new();
        let mut chunk = Zeroizing::new([0; 8 * 1024]);
        loop {
            match reader.read(&mut chunk[..]).map_err(Error::from)? {
                0 => break,
                // The rest is not read; the machine sees that, and what the status and the headers say.
                length if body.push(&chunk[..length]).is_err() => break,
                _ => {}
            }
        }
        // Without ureq's own extensions.
        let mut response = Response::new(body);
        *response.status_mut() = head.status;
        *response.version_mut() = head.version;
        *response.headers_mut() = head.headers;
        Ok(response)
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").finish_non_exhaustive()
    }
}

/// The form as ureq reads it: when the connection stands and the head is sent, and not before. ureq's errors do not tell how
/// far a request came; this does.
struct Form<'a> {
    rest: &'a [u8],
    begun: bool,
}

impl Read for Form<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.begun = true;
        self.rest.read(buffer)
    }
}

/// `sent` tells how far the request came: ureq's errors do not.
fn failure(error: Error, sent: bool) -> Failure {
    let kind = match &error {
        Error::Timeout(Timeout::Resolve | Timeout::Connect) => FailureKind::Connect,
        Error::Timeout(_) => FailureKind::Timeout,
        _ if sent => FailureKind::Io,
        _ => FailureKind::Connect,
    };
    let detail = match error {
        Error::Io(error) => error.to_string(),
        Error::Timeout(Timeout::Resolve) => "the name look-up took too long".to_owned(),
        Error::Timeout(Timeout::Connect) => "connecting took too long".to_owned(),
        Error::Timeout(_) => String::new(),
        // Its text holds the URL.
        Error::BadUri(_) => "bad URL".to_owned(),
        error => error.to_string(),
    };
    Failure::new(kind, detail)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::sync::mpsc;
    use std::thread::{self, JoinHandle};

    use storm_auth_core::machine::{Action, Output};
    use storm_auth_core::{AcquireError, Credentials, Environment, Machine, Now, Settings};

    use super::*;

    const LONG: Duration = Duration::from_secs(420);
    const SHORT: Duration = Duration::from_millis(300);
    const TOKEN: &str = r#"{"access_token":"abc","expires_in":3600,"token_type":"Bearer"}"#;

    fn transport() -> Transport {
        Transport::new(settings().proxy(None), Arc::new(Agent::new_with_config))
    }

    const START: Now = Now::from_millis(0, 1_700_000_000_000);

    /// A machine that waits for the answer to this request.
    fn asking(url: &str) -> (Machine, machine::TokenRequest) {
        let environment = Environment::custom(url, "http://localhost/", "lab");
        let credentials = Credentials::new("shop", "S3cret").unwrap();
        let config = Settings::new().environment(environment).credentials(credentials).check().unwrap();
        let mut machine = Machine::new(config.policy, 7);
        let key = machine.add_key(config.key, START);
        let _ = machine.acquire(key, None, START);
        loop {
            if let Output::Perform(Action::Send(send)) = machine.poll_output().unwrap() {
                return (machine, send);
            }
        }
    }

    fn request(url: &str, patience: Duration) -> machine::TokenRequest {
        let mut send = asking(url).1;
        send.patience = patience;
        send
    }

    /// What a machine makes of an answer: the header, or an error.
    fn read(response: &Response<ResponseBody>) -> Result<String, Box<AcquireError>> {
        let (mut machine, send) = asking("http://localhost/");
        machine.handle_response(send.op, response, START);
        loop {
            if let Output::Resolve(_, result) = machine.poll_output().unwrap() {
                return result.map(|token| token.header().to_str().unwrap().to_owned()).map_err(Box::new);
            }
        }
    }

    fn listen() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/connect/token", listener.local_addr().unwrap());
        (listener, url)
    }

    /// A server for one connection; the handle returns what the conversation does, once that is over.
    fn serve<T: Send + 'static>(talk: impl FnOnce(TcpStream) -> T + Send + 'static) -> (String, JoinHandle<T>) {
        let (listener, url) = listen();
        (url, thread::spawn(move || talk(listener.accept().unwrap().0)))
    }

    /// Reads a request, its form included.
    fn hear(mut stream: &TcpStream) -> String {
        let (mut heard, mut byte) = (Vec::new(), [0]);
        while !heard.ends_with(b"scope=lab") {
            assert_eq!(stream.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&heard));
            heard.push(byte[0]);
        }
        String::from_utf8(heard).unwrap()
    }

    fn answer(status: &str, headers: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len())
    }

    /// Waits until the other side is gone.
    fn hang(mut stream: &TcpStream) {
        let _ = stream.read(&mut [0; 64]);
    }

    fn kind(outcome: Result<Response<ResponseBody>, Failure>) -> FailureKind {
        outcome.expect_err("there is no answer").kind
    }

    /// What becomes of a request whose server says this and closes.
    fn told(text: impl Into<Vec<u8>>) -> Result<Response<ResponseBody>, Failure> {
        let text = text.into();
        let (url, server) = serve(move |mut stream| {
            hear(&stream);
            let _ = stream.write_all(&text);
        });
        let outcome = transport().send(request(&url, LONG));
        server.join().unwrap();
        outcome
    }

    #[test]
    fn r1_r46_one_plain_request_over_a_connection_that_is_not_kept() {
        let (url, server) = serve(|mut stream| {
            let heard = hear(&stream);
            stream.write_all(answer("200 OK", "Content-Type: application/json\r\n", TOKEN).as_bytes()).unwrap();
            // Nothing more comes, and the client closes although the server would keep the connection.
            (heard, stream.read(&mut [0]).unwrap())
        });
        let transport = transport();
        let response = transport.send(request(&url, LONG)).unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "application/json");
        assert_eq!(read(&response).unwrap(), "Bearer abc");

        let (heard, left) = server.join().unwrap();
        assert_eq!(left, 0);
        let (head, form) = heard.split_once("\r\n\r\n").unwrap();
        assert_eq!(form, "grant_type=client_credentials&client_id=shop&client_secret=S3cret&scope=lab");
        let mut lines: Vec<_> = head.split("\r\n").map(str::to_ascii_lowercase).collect();
        assert_eq!(lines.remove(0), "post /connect/token http/1.1");
        lines.retain(|line| !line.starts_with("host: 127.0.0.1:"));
        lines.sort();
        assert_eq!(
            lines,
            [
                "accept-encoding: identity".to_owned(),
                "accept: application/json".to_owned(),
                "connection: close".to_owned(),
                format!("content-length: {}", form.len()),
                "content-type: application/x-www-form-urlencoded".to_owned(),
                concat!("user-agent: storm-auth-blocking/", env!("CARGO_PKG_VERSION")).to_owned(),
            ]
        );
    }

    #[test]
    fn r5_the_callers_settings_cannot_loosen_the_policies() {
        let loose = settings().proxy(None).http_status_as_error(true).https_only(true).max_redirects(10);
        let loose = loose.max_idle_connections(10).accept_encoding("gzip").timeout_recv_response(Some(Duration::ZERO));
        let transport = Transport::new(loose, Arc::new(Agent::new_with_config));
        let (url, server) = serve(|mut stream| {
            let heard = hear(&stream);
            stream.write_all(answer("400 Bad Request", "", r#"{"error":"invalid_client"}"#).as_bytes()).unwrap();
            hang(&stream);
            heard
        });
        let response = transport.send(request(&url, LONG)).unwrap();
        assert_eq!(response.status(), 400);
        assert!(read(&response).unwrap_err().is_configuration());
        assert!(!server.join().unwrap().contains("gzip"));
    }

    #[test]
    fn r44_no_redirect_is_followed() {
        let (elsewhere, url) = listen();
        elsewhere.set_nonblocking(true).unwrap();
        for status in [301, 302, 303, 307, 308] {
            let headers = format!("Location: {url}\r\n");
            for body in ["", "moved"] {
                let response = told(answer(&format!("{status} Moved"), &headers, body)).unwrap();
                assert_eq!(response.status(), status);
                assert_eq!(response.headers()["location"], url);
            }
        }
        assert_eq!(elsewhere.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn nobody_listening_is_no_connection() {
        let (listener, url) = listen();
        drop(listener);
        let failure = transport().send(request(&format!("{url}?q=hidden"), LONG)).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Connect);
        assert!(!failure.detail.is_empty() && !failure.detail.contains("hidden"), "{failure}");
    }

    #[test]
    fn a_connection_that_breaks_is_an_io_failure() {
        assert_eq!(kind(told("")), FailureKind::Io);
        assert_eq!(kind(told("HTTP/1.1 200 OK\r\nContent-Le")), FailureKind::Io);
        assert_eq!(kind(told("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")), FailureKind::Io);
        assert_eq!(kind(told("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{")), FailureKind::Io);
        assert_eq!(kind(told("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n")), FailureKind::Io);
        assert_eq!(kind(told("SSH-2.0-OpenSSH_9.9\r\n")), FailureKind::Io);
    }

    #[test]
    fn a_reset_is_an_io_failure() {
        // Closing while bytes are unread resets the connection.
        let (url, server) = serve(|mut stream| stream.read(&mut [0]).unwrap());
        assert_eq!(kind(transport().send(request(&url, LONG))), FailureKind::Io);
        server.join().unwrap();
    }

    #[test]
    fn r10_reading_stops_past_the_limit() {
        for head in ["", "Content-Length: 1000000000\r\n", "Transfer-Encoding: chunked\r\n"] {
            let (url, server) = serve(move |mut stream| {
                hear(&stream);
                write!(stream, "HTTP/1.1 200 OK\r\n{head}\r\n").unwrap();
                let piece = [format!("{:x}\r\n", 4096).as_bytes(), &[b' '; 4096], b"\r\n"].concat();
                while stream.write_all(&piece).is_ok() {}
            });
            assert!(transport().send(request(&url, LONG)).unwrap().body().is_too_large());
            server.join().unwrap();
        }
        assert!(told(answer("200 OK", "", &" ".repeat(64 * 1024 + 1))).unwrap().body().is_too_large());
        let padded = TOKEN.to_owned() + &" ".repeat(64 * 1024 - TOKEN.len());
        assert_eq!(read(&told(answer("200 OK", "", &padded)).unwrap()).unwrap(), "Bearer abc");
        let headers = format!("X-Long: {}\r\n", "x".repeat(Transport::HEAD));
        assert_eq!(kind(told(answer("200 OK", &headers, TOKEN))), FailureKind::Io);
    }

    #[test]
    fn r47_silence_ends_by_the_patience() {
        for text in ["", "HTTP/1.1 200 OK\r\nContent-Le", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"] {
            let (url, server) = serve(move |mut stream| {
                hear(&stream);
                stream.write_all(text.as_bytes()).unwrap();
                hang(&stream);
            });
            assert_eq!(kind(transport().send(request(&url, SHORT))), FailureKind::Timeout, "{text:?}");
            server.join().unwrap();
        }
    }

    #[test]
    fn r47_a_drip_ends_by_the_patience() {
        for text in ["HTTP/1.1 200 OK\r\nX-Never-Ending: ", "HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n"] {
            let (url, server) = serve(move |mut stream| {
                hear(&stream);
                stream.write_all(text.as_bytes()).unwrap();
                // A drip has to be slow, and end only when nobody listens any more.
                while stream.write_all(b" ").is_ok() {
                    thread::sleep(Duration::from_millis(20));
                }
            });
            assert_eq!(kind(transport().send(request(&url, SHORT))), FailureKind::Timeout, "{text:?}");
            server.join().unwrap();
        }
    }

    #[test]
    fn a_patience_beyond_the_clocks_end_does_not_panic() {
        let (url, server) = serve(|mut stream| {
            hear(&stream);
            stream.write_all(answer("200 OK", "", TOKEN).as_bytes()).unwrap();
        });
        assert!(transport().send(request(&url, Duration::MAX)).is_ok());
        server.join().unwrap();
        assert_eq!(kind(transport().send(request(&url, Duration::ZERO))), FailureKind::Timeout);
    }

    /// Cancels a request once its server has said this, and holds the connection open on both sides until that ends it.
    fn cancel_after(url: &str, stalled: &mpsc::Receiver<()>) {
        let transport = Arc::new(transport());
        let flight = {
            let (transport, send) = (transport.clone(), request(url, LONG));
            thread::spawn(move || transport.send(send))
        };
        stalled.recv().unwrap();
        transport.cancel();
        assert_eq!(kind(flight.join().unwrap()), FailureKind::Aborted);
        assert_eq!(kind(transport.send(request(url, LONG))), FailureKind::Aborted);
        assert_eq!(Arc::strong_count(&transport), 1);
    }

    #[test]
    fn r55_cancelling_ends_a_stalled_request() {
        // The last one is a body that ends with its connection: cut by us, it would look whole.
        for text in ["", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", "HTTP/1.1 200 OK\r\n\r\n{"] {
            let (tell, stalled) = mpsc::channel();
            let (url, server) = serve(move |mut stream| {
                hear(&stream);
                stream.write_all(text.as_bytes()).unwrap();
                tell.send(()).unwrap();
                hang(&stream);
            });
            cancel_after(&url, &stalled);
            server.join().unwrap();
        }
    }

    #[test]
    #[cfg(any(feature = "rustls", feature = "native-tls"))]
    fn r55_cancelling_ends_a_stalled_tls_handshake() {
        let (tell, stalled) = mpsc::channel();
        let (url, server) = serve(move |mut stream| {
            stream.read_exact(&mut [0; 5]).unwrap();
            tell.send(()).unwrap();
            while stream.read(&mut [0; 64]).is_ok_and(|length| length > 0) {}
        });
        cancel_after(&url.replace("http:", "https:"), &stalled);
        server.join().unwrap();
    }

    #[test]
    #[cfg(any(feature = "rustls", feature = "native-tls"))]
    fn a_tls_handshake_that_fails_is_no_connection() {
        for text in ["", "HTTP/1.1 400 Bad Request\r\n\r\n"] {
            let (url, server) = serve(move |mut stream| {
                stream.read_exact(&mut [0; 5]).unwrap();
                stream.write_all(text.as_bytes()).unwrap();
            });
            let outcome = transport().send(request(&url.replace("http:", "https:"), LONG));
            assert_eq!(kind(outcome), FailureKind::Connect);
            server.join().unwrap();
        }
    }

    #[test]
    fn r5_the_callers_proxy_is_used() {
        let through = |url: &str| {
            let proxy = ureq::Proxy::new(&url.replace("/connect/token", "")).unwrap();
            Transport::new(settings().proxy(Some(proxy)), Arc::new(Agent::new_with_config))
        };
        let (target, unreached) = listen();
        target.set_nonblocking(true).unwrap();
        let connect = |mut stream: &TcpStream| {
            let (mut heard, mut byte) = (Vec::new(), [0]);
            while !heard.ends_with(b"\r\n\r\n") {
                assert_eq!(stream.read(&mut byte).unwrap(), 1);
                heard.push(byte[0]);
            }
            assert!(heard.starts_with(b"CONNECT 127.0.0.1:"));
        };

        let (url, proxy) = serve(move |mut stream| {
            connect(&stream);
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            hear(&stream);
            stream.write_all(answer("200 OK", "", TOKEN).as_bytes()).unwrap();
        });
        let response = through(&url).send(request(&unreached, LONG)).unwrap();
        assert_eq!(read(&response).unwrap(), "Bearer abc");
        proxy.join().unwrap();

        let (url, proxy) = serve(move |mut stream| {
            connect(&stream);
            stream.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").unwrap();
        });
        assert_eq!(kind(through(&url).send(request(&unreached, LONG))), FailureKind::Connect);
        proxy.join().unwrap();

        assert_eq!(target.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    #[cfg(not(any(feature = "rustls", feature = "native-tls")))]
    fn without_tls_there_is_no_connection_to_an_https_url() {
        let (listener, url) = listen();
        assert_eq!(kind(transport().send(request(&url.replace("http:", "https:"), LONG))), FailureKind::Connect);
        drop(listener);
    }
}
