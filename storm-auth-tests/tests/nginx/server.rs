//! A real nginx with the documented limit, in front of an emulator's token endpoint.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use storm_auth_tests::emulator::Emulator;

/// Stopped, and its folder removed, when it is dropped.
pub(crate) struct Nginx {
    process: Child,
    folder: PathBuf,
    port: u16,
}

impl Nginx {
    /// 3 requests a minute and a burst of 20 more, per address; `None` where nginx is not installed.
    pub(crate) fn in_front_of(emulator: &Emulator) -> Option<Self> {
        if Command::new("nginx").arg("-v").stderr(Stdio::null()).status().is_err() {
            assert!(
                std::env::var_os("STORM_TESTS_SKIP_NOTHING").is_none(),
                "nginx is not installed, and nothing may be skipped"
            );
            eprintln!("SKIPPED: nginx is not installed, so nothing was tried behind its limiter");
            return None;
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("nginx-{port}"));
        fs::create_dir_all(&folder).unwrap();
        let upstream = emulator.token_url();
        let upstream = upstream.split('/').nth(2).unwrap();
        let at = folder.display();
        let config = format!(
            "daemon off; pid {at}/pid; error_log {at}/error.log; worker_processes 1;
            events {{ worker_connections 64; }}
            http {{
                access_log off;
                client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi;
                uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;
                limit_req_zone $binary_remote_addr zone=token:1m rate=3r/m;
                server {{
                    listen 127.0.0.1:{port};
                    location / {{
                        limit_req zone=token burst=20 nodelay;
                        limit_req_status 429;
                        proxy_pass http://{upstream};
                    }}
                }}
            }}"
        );
        fs::write(folder.join("nginx.conf"), config).unwrap();
        let process = Command::new("nginx")
            .args(["-p", &at.to_string(), "-e", &format!("{at}/error.log"), "-c", &format!("{at}/nginx.conf")])
            .spawn()
            .unwrap();
        let nginx = Self { process, folder, port };
        let listening = (0..500).any(|_| {
            let connected = TcpStream::connect(("127.0.0.1", port)).is_ok();
            // A process that starts has no clock to move: this waits for it.
            (!connected).then(|| std::thread::sleep(Duration::from_millis(20)));
            connected
        });
        assert!(listening, "{}", fs::read_to_string(nginx.folder.join("error.log")).unwrap_or_default());
        Some(nginx)
    }

    pub(crate) fn token_url(&self) -> String {
        format!("http://127.0.0.1:{}/identity/1.0/connect/token", self.port)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // A master that is killed leaves its worker behind; one that is told to stop does not.
        let (folder, config) = (self.folder.display().to_string(), self.folder.join("nginx.conf"));
        let mut told = Command::new("nginx");
        told.args(["-p", &folder, "-e", &format!("{folder}/error.log"), "-s", "stop", "-c"]).arg(config);
        if told.status().is_ok_and(|status| status.success()) {
            let _ = self.process.wait();
        } else {
            let _ = self.process.kill();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}
