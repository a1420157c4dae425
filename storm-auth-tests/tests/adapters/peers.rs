//! Peers that the emulator cannot be: plain sockets.

use std::{
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    thread::JoinHandle,
};

/// A server that nobody should turn to.
pub(crate) struct Elsewhere(TcpListener);

impl Elsewhere {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Self(listener)
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.0.local_addr().unwrap())
    }

    /// That no connection came, and so not a byte.
    pub(crate) fn assert_untouched(&self) {
        assert_eq!(self.0.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock, "somebody came");
    }
}

/// A port that refuses connections.
pub(crate) fn refusing() -> String {
    Elsewhere::start().url()
}

/// A server that takes connections one after another, each handled by `talk` on the one thread, until it is dropped.
pub(crate) struct Peer {
    url: String,
    stop: mpsc::Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Peer {
    pub(crate) fn start(mut talk: impl FnMut(TcpStream) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            loop {
                let (stream, _) = listener.accept().unwrap();
                if stopped.try_recv().is_ok() {
                    return;
                }
                talk(stream);
            }
        });
        Self { url, stop, thread: Some(thread) }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.stop.send(());
        // The connection that lets `accept` return.
        drop(TcpStream::connect(self.url.trim_start_matches("http://")));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Reads one request, body included; empty when the client closed instead.
pub(crate) fn hear(stream: &mut TcpStream) -> Vec<u8> {
    let (mut heard, mut chunk) = (Vec::new(), [0; 4_096]);
    loop {
        let end = heard.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4);
        if let Some(end) = end {
            let head = String::from_utf8_lossy(&heard[..end]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if heard.len() - end >= length.map_or(0, |length| length.trim().parse().unwrap()) {
                return heard;
            }
        }
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return Vec::new(),
            Ok(read) => heard.extend_from_slice(&chunk[..read]),
        }
    }
}

/// Answers with a body whose length is told.
pub(crate) fn answer(stream: &mut TcpStream, status: &str, headers: &str, body: &str) {
    let _ = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len());
}

/// A token response that names this token.
pub(crate) fn granting(token: &str) -> String {
    format!(r#"{{"access_token":"{token}","expires_in":3600,"token_type":"Bearer"}}"#)
}
