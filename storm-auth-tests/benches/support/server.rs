//! A server on loopback that costs as little as a server can: for what the emulator would do too much.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use super::TOKEN_LENGTH;

/// It keeps its connections, each with a thread, and ends with the process.
pub(crate) struct Server {
    address: SocketAddr,
    requests: Arc<AtomicU64>,
}

impl Server {
    /// Answers each request, whatever it is, with what `body` makes once the request is there.
    pub(crate) fn start(body: impl Fn() -> String + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, requests) = (listener.local_addr().unwrap(), Arc::<AtomicU64>::default());
        let (body, counted) = (Arc::new(body), requests.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (body, counted) = (body.clone(), counted.clone());
                thread::spawn(move || serve(&stream.unwrap(), &counted, &*body));
            }
        });
        Self { address, requests }
    }

    /// A token endpoint.
    pub(crate) fn tokens() -> Self {
        Self::start(grant)
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }
}

/// A token response with a token of its own.
pub(crate) fn grant() -> String {
    static TOKENS: AtomicU64 = AtomicU64::new(0);
    let number = TOKENS.fetch_add(1, Ordering::Relaxed);
    format!(r#"{{"access_token":"{number:0>TOKEN_LENGTH$}","expires_in":3600,"token_type":"Bearer"}}"#)
}

/// Until the client goes.
fn serve(stream: &TcpStream, requests: &AtomicU64, body: &dyn Fn() -> String) {
    stream.set_nodelay(true).unwrap();
    let (mut reader, mut stream) = (BufReader::new(stream), stream);
    while read_request(&mut reader).is_some() {
        requests.fetch_add(1, Ordering::SeqCst);
        let body = body();
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length:";
        let answer = format!("{head} {}\r\n\r\n{body}", body.len());
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn read_request(reader: &mut impl BufRead) -> Option<()> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
        match line.trim_end().to_ascii_lowercase().split_once(':') {
            Some(("content-length", value)) => length = value.trim().parse().unwrap(),
            Some(_) => {}
            None if line.trim_end().is_empty() => break,
            None => {}
        }
    }
    reader.read_exact(&mut vec![0; length]).ok()
}
