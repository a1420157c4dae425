//! Peers that the emulator cannot be: plain sockets.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread::JoinHandle,
};

use crate::face::PATIENCE;

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

/// What a scripted peer does with a connection, one step after another. Behind the last one it waits until the other side is
/// gone.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Reads one request, body included.
    Hear,
    /// Reads one byte and leaves the rest unread, so that closing resets the connection.
    Glance,
    Say(Vec<u8>),
    /// Says this again and again until nobody listens, or the peer is [hushed](Scripted::hush).
    SayForEver(Vec<u8>),
    /// Says nothing more, and goes on listening.
    HalfClose,
    Close,
}

pub(crate) fn say(text: impl Into<Vec<u8>>) -> Step {
    Step::Say(text.into())
}

/// A peer whose first connection goes by the first script, and so on; those behind the last one go by the last.
pub(crate) struct Scripted {
    peer: Peer,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    connections: AtomicUsize,
    heard: AtomicUsize,
    left: AtomicUsize,
    hushed: AtomicBool,
}

impl Scripted {
    pub(crate) fn start(scripts: impl IntoIterator<Item = Vec<Step>>) -> Self {
        let scripts: Vec<_> = scripts.into_iter().collect();
        let counts = Arc::new(Counts::default());
        let peer = Peer::start({
            let counts = counts.clone();
            move |stream| {
                let turn = counts.connections.fetch_add(1, Ordering::Relaxed).min(scripts.len() - 1);
                play(stream, &scripts[turn], &counts);
                counts.left.fetch_add(1, Ordering::Release);
            }
        });
        Self { peer, counts }
    }

    pub(crate) fn url(&self) -> &str {
        self.peer.url()
    }

    pub(crate) fn connections(&self) -> usize {
        self.counts.connections.load(Ordering::Relaxed)
    }

    /// Requests that it read to their end.
    pub(crate) fn heard(&self) -> usize {
        self.counts.heard.load(Ordering::Relaxed)
    }

    /// Goes on to the next step where it says something for ever.
    pub(crate) fn hush(&self) {
        self.counts.hushed.store(true, Ordering::Relaxed);
    }

    /// Connections that are over on both sides.
    pub(crate) fn over(&self) -> usize {
        self.counts.left.load(Ordering::Acquire)
    }
}

fn play(mut stream: TcpStream, script: &[Step], counts: &Counts) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    for step in script {
        match step {
            Step::Hear => {
                if hear(&mut stream).is_empty() {
                    return;
                }
                counts.heard.fetch_add(1, Ordering::Relaxed);
            }
            Step::Glance => drop(stream.read(&mut [0])),
            Step::Say(text) => drop(stream.write_all(text)),
            Step::SayForEver(text) => {
                while stream.write_all(text).is_ok() {
                    if counts.hushed.load(Ordering::Relaxed) {
                        break;
                    }
                }
            }
            Step::HalfClose => drop(stream.shutdown(Shutdown::Write)),
            Step::Close => return,
        }
    }
    while stream.read(&mut [0; 4_096]).is_ok_and(|read| read > 0) {}
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
