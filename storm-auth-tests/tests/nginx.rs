//! The documented limit as a real nginx keeps it, in front of the emulator's token endpoint. Skipped where nginx is not
//! installed, unless `STORM_TESTS_SKIP_NOTHING` is set.

#![allow(clippy::unwrap_used, reason = "helpers of the test stand outside of its function")]
#![allow(clippy::print_stderr, reason = "a test that is skipped says so")]

use std::fs;
use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use storm_auth_blocking::{Credentials, Scope, TokenProvider};
use storm_auth_tests::emulator::{CLIENT_ID, CLIENT_SECRET, Emulator, Limiter, SCOPE};

struct Nginx {
    process: Child,
    folder: PathBuf,
    port: u16,
}

impl Nginx {
    /// 3 requests a minute and a burst of 20 more, per address; `None` where nginx is not installed.
    fn in_front_of(emulator: &Emulator) -> Option<Self> {
        if Command::new("nginx").arg("-v").stderr(Stdio::null()).status().is_err() {
            assert!(
                std::env::var_os("STORM_TESTS_SKIP_NOTHING").is_none(),
                "nginx is not installed, and nothing may be skipped"
            );
            eprintln!("SKIPPED: nginx is not installed, so the emulator's limiter was not compared with the real one");
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

    fn token_url(&self) -> String {
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

/// What a client sees of one token request: status, Retry-After, content type, and the length of the body when it is a 429.
fn ask(url: &str) -> (u16, bool, String, Option<usize>) {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let form = [
        ("grant_type", "client_credentials"),
        ("client_id", CLIENT_ID),
        ("client_secret", CLIENT_SECRET),
        ("scope", SCOPE),
    ];
    let mut answer = agent.post(url).send_form(form).unwrap();
    let mut body = String::new();
    answer.body_mut().as_reader().read_to_string(&mut body).unwrap();
    let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
    let status = answer.status().as_u16();
    (status, answer.headers().contains_key("retry-after"), kind, (status == 429).then_some(body.len()))
}

#[test]
fn r34_a_real_nginx_limits_as_the_emulator_does_and_its_429_closes_the_gate() {
    let behind = Emulator::builder().limiter(Limiter::none()).start();
    let Some(nginx) = Nginx::in_front_of(&behind) else { return };
    let emulator = Emulator::builder().limiter(Limiter::nginx()).start();

    let real: Vec<_> = (0..23).map(|_| ask(&nginx.token_url())).collect();
    let emulated: Vec<_> = (0..23).map(|_| ask(&emulator.token_url())).collect();
    assert_eq!(real, emulated);
    assert_eq!(real.iter().filter(|answer| answer.0 == 200).count(), 21);
    assert_eq!(behind.token_requests(), 21);

    let tokens = TokenProvider::builder()
        .token_url(nginx.token_url())
        .scope(Scope::new(SCOPE).unwrap())
        .credentials(Credentials::new(CLIENT_ID, CLIENT_SECRET).unwrap())
        .build_tokens()
        .unwrap();
    let asked = SystemTime::now();
    for requests_sent in [1, 1] {
        let error = tokens.token_within(Duration::from_secs(5)).unwrap_err();
        assert!(error.is_rate_limited(), "{error}");
        let wait = error.retry_at().unwrap().duration_since(asked).unwrap();
        assert!((14..=26).contains(&wait.as_secs()), "{wait:?}");
        assert_eq!(tokens.counters().requests, requests_sent);
    }
    assert_eq!(behind.token_requests(), 21);
}
