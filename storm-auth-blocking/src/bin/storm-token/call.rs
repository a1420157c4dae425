//! `storm-token call`

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use http::{HeaderMap, HeaderValue, Response, header};
use serde_json::{Value, json};
use storm_auth_blocking::StormClient;
use ureq::Body;
use zeroize::Zeroizing;

use crate::args::{Call, Common};
use crate::failure::{Failure, Kind};
use crate::{output, settings};

pub(crate) fn run(common: &Common, call: &Call) -> Result<ExitCode, Failure> {
    let body = call.body_file.as_deref().map(body).transpose()?;
    let settings = settings::load(common)?;
    if settings.clone().check()?.api.is_none() {
        let unset = "API URL (STORM_API_URL): not set; set the variable, or api_url or norce in the configuration file";
        return Err(Failure::configuration(unset));
    }
    let storm = settings::with_store(common, settings.into(), settings::store(common)?).build()?;
    let result = send(&storm, call, body).and_then(|response| print(common, call, response));
    settings::close(storm.tokens());
    result
}

fn body(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut body = Zeroizing::new(Vec::new());
    let read = match path.as_os_str().as_encoded_bytes() {
        b"-" => io::stdin().lock().read_to_end(&mut body),
        _ => File::open(path).and_then(|mut file| file.read_to_end(&mut body)),
    };
    match read {
        Ok(_) => Ok(body),
        Err(error) => {
            let path = path.display();
            Err(Failure::new(Kind::Usage, format!("--body-file: {path} cannot be read: {error}; check the path")))
        }
    }
}

fn send(storm: &StormClient, call: &Call, body: Option<Zeroizing<Vec<u8>>>) -> Result<Response<Body>, Failure> {
    let mut request = storm.request(call.method.clone(), &call.target);
    for (name, value) in &call.headers {
        let value = value.to_str().map_err(|_| {
            Failure::new(Kind::Usage, format!("--header: {name}: a character that is not ASCII; write it in ASCII"))
        })?;
        request = request.header(name.as_str(), value);
    }
    if let Some(id) = call.application_id {
        request = request.application_id(id);
    }
    Ok(match body {
        Some(body) => request.send(&*body),
        None => request.call(),
    }?)
}

fn print(common: &Common, call: &Call, response: Response<Body>) -> Result<ExitCode, Failure> {
    let (head, mut body) = response.into_parts();
    if common.json {
        let mut bytes = Vec::new();
        body.as_reader().read_to_end(&mut bytes).map_err(broken)?;
        output::print_json(&json!({
            "status": head.status.as_u16(),
            "headers": headers(&head.headers),
            "body": value(&bytes, head.headers.get(header::CONTENT_TYPE)),
        }))?;
    } else {
        let mut out = io::stdout().lock();
        let mut write = |bytes: &[u8]| out.write_all(bytes).map_err(|error| output::unwritten(&error));
        if call.include {
            let mut text = format!("{:?} {}\r\n", head.version, head.status).into_bytes();
            for (name, value) in &head.headers {
                text.extend_from_slice(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
            }
            text.extend_from_slice(b"\r\n");
            write(&text)?;
        }
        let mut reader = body.as_reader();
        let mut chunk = [0; 16 * 1024];
        loop {
            match reader.read(&mut chunk).map_err(broken)? {
                0 => break,
                length => write(&chunk[..length])?,
            }
        }
        out.flush().map_err(|error| output::unwritten(&error))?;
    }
    if head.status.is_success() {
        return Ok(ExitCode::SUCCESS);
    }
    if !common.json {
        output::tell(&format!("storm-token: the API answered {}", head.status));
    }
    Ok(ExitCode::from(Kind::Api.code()))
}

fn broken(error: io::Error) -> Failure {
    Failure::new(Kind::Api, format!("the API's answer broke off: {error}; call again"))
}

/// A header that stands once as a text, and one that stands several times as a list.
fn headers(headers: &HeaderMap) -> Value {
    let text = |value: &HeaderValue| Value::from(String::from_utf8_lossy(value.as_bytes()));
    let of = |name| {
        let mut values: Vec<_> = headers.get_all(name).iter().map(text).collect();
        if values.len() == 1 { values.remove(0) } else { Value::Array(values) }
    };
    headers.keys().map(|name| (name.as_str().to_owned(), of(name))).collect()
}

/// JSON as what it is, other text as text, and what is no text in base64.
fn value(bytes: &[u8], content_type: Option<&HeaderValue>) -> Value {
    use base64::Engine as _;

    let kind = content_type.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if (kind.ends_with("/json") || kind.ends_with("+json"))
        && let Ok(value) = serde_json::from_slice(bytes)
    {
        return value;
    }
    match core::str::from_utf8(bytes) {
        Ok("") => Value::Null,
        Ok(text) => Value::from(text),
        Err(_) => json!({ "base64": base64::engine::general_purpose::STANDARD.encode(bytes) }),
    }
}
