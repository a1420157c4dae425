//! The one test of its process, so that it can count the process's threads and files.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "what the test shares stands outside of its function")]

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use storm_auth_tests::emulator::{At, Emulator, Endpoint, Fault};

/// Long enough that only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(30);

fn entries(folder: &str) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

#[test]
fn a_dropped_emulator_leaves_neither_thread_nor_file() {
    let before = (entries("/proc/self/task"), entries("/proc/self/fd"));
    for _ in 0..3 {
        let emulator = Emulator::start();
        let address = emulator.token_url().split('/').nth(2).unwrap().to_owned();
        emulator.fail_next(Endpoint::Token, 1, Fault::Stall(At::Headers));
        let request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
        let sockets = [(); 2].map(|()| TcpStream::connect(&address).unwrap());
        for mut socket in &sockets {
            socket.write_all(request).unwrap();
        }
        assert!(emulator.wait_for(PATIENCE, |counts| counts.token_requests == 2));
        assert!(entries("/proc/self/task") > before.0);
        drop(emulator);
        for mut socket in sockets {
            // The answer, if one came, and then the end.
            let _ = socket.read_to_end(&mut Vec::new());
        }
        // Whoever joins a thread is woken before the kernel takes it off the list.
        let start = Instant::now();
        while (entries("/proc/self/task"), entries("/proc/self/fd")) != before {
            assert!(start.elapsed() < PATIENCE, "a thread or a file is left");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
