//! Settings from a configuration file: what each key takes, what each wrong value is told, and which variable wins.

#![cfg(feature = "serde")]
#![allow(clippy::unwrap_used, reason = "what the tests share stands outside of their functions")]

use std::ffi::OsString;
use std::io;
use std::time::Duration;

use storm_auth_core::config_file::Source;
use storm_auth_core::{Budget, Field, FileSettings, Settings};

const WHOLE: &str = r#"
norce = { tenant = "acme", region = "se", stage = "stage" }
api_url = ["http://emulator:8080/base", "https://files.acme.example"]
scope = "stage other"
client_id = "shop"
client_secret_file = "secret"
client_secret_next_file = "next"
application_id = 1042
application_header = "application-id"
egress = "frankfurt"
group = "acme"
budget = { per_minute = 60, burst = 10 }
caller_deadline = 2.5
danger_allow_http = "emulator"
"#;

/// What is right but for what a test adds.
const LEAST: &str = "environment = 'storm-lab'\nclient_id = 'shop'\nclient_secret_file = 'secret'\n";

fn parse(text: &str) -> FileSettings {
    toml::from_str(text).unwrap()
}

/// A file that holds `S3cret`, by any name but `missing`.
fn file(path: OsString) -> io::Result<Vec<u8>> {
    match path.to_str() {
        Some("missing") => Err(io::ErrorKind::NotFound.into()),
        Some("next") => Ok(b"Successor".to_vec()),
        _ => Ok(b"S3cret\r\n".to_vec()),
    }
}

fn settings(text: &str) -> Settings {
    parse(text).settings(file).unwrap()
}

#[test]
fn every_key_counts() {
    let config = settings(WHOLE).check().unwrap();
    assert_eq!(config.key.token_url().uri(), "https://acme.api-se.stage.norce.tech/identity/1.0/connect/token");
    assert_eq!(config.key.scope().as_str(), Some("stage other"));
    assert_eq!(config.key.credentials().client_id(), "shop");
    assert_eq!(config.key.credentials().secret().expose(), "S3cret");
    assert_eq!(config.key.credentials().next_secret().map(|secret| secret.expose()), Some("Successor"));
    assert_eq!(config.policy.budget, Budget::per_minute(60, 10));
    assert_eq!(config.policy.caller_deadline, Duration::from_millis(2_500));
    assert_eq!(config.policy.egress, "frankfurt");
    assert_eq!(config.group.as_deref(), Some("acme"));
    let api = config.api.unwrap();
    assert_eq!(api.target("/products").unwrap(), "http://emulator:8080/base/products");
    assert!(api.allows(&"https://files.acme.example/a".parse().unwrap()));
    let mut headers = http::HeaderMap::new();
    api.authorize(&mut headers, http::HeaderValue::from_static("Bearer a"), None);
    assert_eq!(headers["application-id"], "1042");
}

#[test]
fn a_preset_a_single_url_and_no_limit_are_enough() {
    let text = "token_url = 'https://id.example/token'\nscope = 'a'\nclient_id = 'shop'\nclient_secret_file = 's'\n\
                budget = 'unlimited'\ncaller_deadline = 1\napi_url = 'https://api.example'";
    let config = settings(text).check().unwrap();
    assert_eq!(config.policy.budget, Budget::unlimited());
    assert_eq!(config.policy.caller_deadline, Duration::from_secs(1));
    assert_eq!(config.api.unwrap().target("a").unwrap(), "https://api.example/a");
    for (name, scope) in [("storm-lab", "lab"), ("storm-qa", "qa"), ("storm-production", "production")] {
        let text = format!("environment = '{name}'\nclient_id = 'shop'\nclient_secret_file = 's'");
        assert_eq!(settings(&text).check().unwrap().key.scope().as_str(), Some(scope));
    }
    for (stage, host, scope) in
        [("playground", ".playground", "playground"), ("stage", ".stage", "stage"), ("production", "", "prod")]
    {
        let norce = format!("norce = {{ tenant = 'acme', region = 'se', stage = '{stage}' }}");
        let config = settings(&format!("{norce}\nclient_id = 'shop'\nclient_secret_file = 's'")).check().unwrap();
        let url = config.key.token_url().uri().to_string();
        assert!(url.starts_with(&format!("https://acme.api-se{host}.norce.tech/")), "{url}");
        assert_eq!(config.key.scope().as_str(), Some(scope));
    }
    assert!(settings(LEAST).check().is_ok());
}

#[test]
fn other_formats_are_read_as_well() {
    let text = r#"{"norce": {"tenant": "acme", "region": "se", "stage": "production"}, "client_id": "shop",
                   "client_secret_file": "secret", "application_id": 7, "caller_deadline": 5, "egress": null}"#;
    let config: FileSettings = serde_json::from_str(text).unwrap();
    assert_eq!(config.settings(file).unwrap().check().unwrap().key.scope().as_str(), Some("prod"));
}

#[test]
fn each_wrong_value_is_named_with_what_belongs_there_and_never_shown() {
    let text = "not a text; write it in quotes";
    let number = "not a number; write it alone, like 1042";
    let seconds = "not a number of seconds above zero; write one like 30";
    let budget = r#"not a budget; write { per_minute = 3, burst = 20 }, or "unlimited""#;
    let texts = "not a text, nor a list of some; write it in quotes";
    let tenant = r#"not a table of three texts; write { tenant = "acme", region = "se", stage = "playground" }"#;
    for (line, field, message) in [
        ("token_url = 7", Field::TokenUrl, text),
        ("token_url = 'Canary-7d1f'", Field::TokenUrl, "not an absolute http(s) URL"),
        ("token_url = 'http://canary.example/'", Field::TokenUrl, "allow this one host with danger_allow_http"),
        ("api_url = { a = 'Canary-7d1f' }", Field::ApiUrl, texts),
        ("api_url = []", Field::ApiUrl, texts),
        ("api_url = ['https://a.example', 'https://user:Canary-7d1f@b.example']", Field::ApiUrl, "userinfo"),
        ("api_url = 'https://a.example?Canary-7d1f'", Field::ApiUrl, "a base URL has no query"),
        ("scope = ['Canary-7d1f']", Field::Scope, text),
        ("scope = ''", Field::Scope, "an empty scope token"),
        ("application_id = 'Canary-7d1f'", Field::ApplicationId, number),
        ("application_id = -1", Field::ApplicationId, number),
        ("application_id = 1.5", Field::ApplicationId, number),
        ("application_header = true", Field::ApplicationHeader, text),
        (
            "application_header = 'Canary 7d1f'",
            Field::ApplicationHeader,
            "not a header name; use one like application-id",
        ),
        ("egress = 1979-05-27", Field::Egress, text),
        ("group = 7", Field::Group, text),
        ("budget = 'Canary-7d1f'", Field::Budget, budget),
        ("budget = { per_minute = 3 }", Field::Budget, budget),
        ("budget = { per_minute = 3, burst = 20, more = 1 }", Field::Budget, budget),
        ("budget = { per_minute = 3, burst = 4294967296 }", Field::Budget, budget),
        ("budget = { per_minute = 0, burst = 1 }", Field::Budget, r#"write at least 1, or "unlimited""#),
        ("caller_deadline = 0", Field::CallerDeadline, seconds),
        ("caller_deadline = -0.5", Field::CallerDeadline, seconds),
        ("caller_deadline = nan", Field::CallerDeadline, seconds),
        ("caller_deadline = 1e300", Field::CallerDeadline, seconds),
        ("caller_deadline = 'Canary-7d1f'", Field::CallerDeadline, seconds),
        ("danger_allow_http = 1", Field::HttpHosts, texts),
        ("danger_allow_http = ['a', 1]", Field::HttpHosts, texts),
        ("client_secret = 'Canary-7d1f'", Field::ClientSecret, "name that as client_secret_file"),
    ] {
        refused(&format!("{LEAST}{line}"), line.split(' ').next().unwrap(), field, message);
    }
    let credentials = "client_id = 'shop'\nclient_secret_file = 's'\n";
    for (line, field, message) in [
        ("norce = 'Canary-7d1f'", Field::Tenant, tenant),
        ("norce = { tenant = 'a', region = 'se' }", Field::Tenant, tenant),
        ("norce = { tenant = 'a', region = 'se', stage = 'stage', slug = 'Canary-7d1f' }", Field::Tenant, tenant),
        ("norce = { tenant = 'a', region = 'se', stage = 1 }", Field::Tenant, tenant),
        ("norce = { tenant = 'a', region = 'se', stage = 'Canary-7d1f' }", Field::Tenant, "no such stage"),
        ("norce = { tenant = 'evil.example/', region = 'se', stage = 'stage' }", Field::Tenant, "not a DNS label"),
        ("environment = 'Canary-7d1f'", Field::Environment, "no such environment"),
        ("environment = 1", Field::Environment, text),
    ] {
        refused(&format!("{credentials}{line}"), line.split(' ').next().unwrap(), field, message);
    }
    let both = format!("{LEAST}norce = {{ tenant = 'a', region = 'se', stage = 'stage' }}");
    refused(&both, "environment", Field::Environment, "chosen twice; remove norce or environment");
    let environment = "environment = 'storm-lab'\n";
    for (lines, key, field, message) in [
        ("client_id = 7", "client_id", Field::ClientId, text),
        ("client_id = ' Canary-7d1f'", "client_id", Field::ClientId, "white space"),
        ("client_id = 'a'\nclient_secret_file = 1", "client_secret_file", Field::ClientSecretFile, text),
        (
            "client_id = 'a'\nclient_secret_file = 's'\nclient_secret_next_file = 1",
            "client_secret_next_file",
            Field::NextSecretFile,
            text,
        ),
        (
            "client_id = 'a'\nclient_secret_file = 's'\nclient_secret_next_file = 'missing'",
            "client_secret_next_file",
            Field::NextSecretFile,
            "there is no such file",
        ),
        (
            "client_id = 'a'\nclient_secret_file = 'missing'",
            "client_secret_file",
            Field::ClientSecretFile,
            "there is no such file",
        ),
    ] {
        refused(&format!("{environment}{lines}"), key, field, message);
    }
}

fn refused(config: &str, key: &str, field: Field, message: &str) {
    let parsed = parse(config);
    let error = parsed.settings(file).unwrap_err();
    assert_eq!(error.field(), field, "{config}: {error}");
    let text = error.to_string();
    assert!(text.contains(&format!("({key} in the configuration file): ")), "{config}: {text}");
    assert!(text.contains(message), "{config}: {text}");
    for shown in [text, format!("{error:?} {parsed:?}")] {
        assert!(!shown.to_lowercase().contains("canary"), "{config}: {shown}");
    }
}

#[test]
fn what_is_not_set_is_told_with_all_ways_to_set_it() {
    for (config, message) in [
        ("", "token URL (STORM_TOKEN_URL): not set; set the variable, or norce, environment or token_url in the"),
        (
            "token_url = 'https://a.example'",
            "scope (STORM_SCOPE): not set; set the variable, or norce, environment or scope",
        ),
        ("environment = 'storm-lab'", "client id (STORM_CLIENT_ID): not set; set the variable, or client_id in the"),
        (
            "environment = 'storm-lab'\nclient_id = 'a'",
            "client secret (STORM_CLIENT_SECRET): not set; set the variable, or STORM_CLIENT_SECRET_FILE to a file that holds it, or \
             client_secret_file in the configuration file",
        ),
    ] {
        let error = parse(config).settings(file).unwrap_err().to_string();
        assert!(error.starts_with(message), "{config}: {error}");
    }
}

#[test]
fn a_key_that_there_is_not_and_a_file_that_is_no_table_are_refused() {
    let error = toml::from_str::<FileSettings>("applicationid = 7").unwrap_err();
    assert!(error.message().contains("unknown field `applicationid`, expected one of `norce`"), "{error}");
    let error = serde_json::from_str::<FileSettings>("7").unwrap_err().to_string();
    assert!(error.contains("a table of settings"), "{error}");
}

/// The struct, its `Debug` and the table of the manual are three lists.
#[test]
fn every_key_is_read_shown_and_documented() {
    let error = toml::from_str::<FileSettings>("nonsense = 7").unwrap_err();
    let (_, expected) = error.message().split_once("expected one of ").unwrap();
    let read: Vec<_> = expected.trim_end().split(", ").map(|key| key.trim_matches('`')).collect();
    let all: String = read.iter().map(|key| format!("{key} = 1\n")).collect();
    assert_eq!(format!("{:?}", parse(&all)), format!("FileSettings{:?}", DebugSet(&read)));
    let rows = include_str!("../src/config_file.rs").lines().filter_map(|line| line.strip_prefix("//! | `"));
    let documented: Vec<_> = rows.map(|row| row.split('`').next().unwrap()).collect();
    // It is refused, and so no key to use.
    let usable: Vec<_> = read.into_iter().filter(|key| *key != "client_secret").collect();
    assert_eq!(usable, documented);
}

struct DebugSet<'a>(&'a [&'a str]);

impl std::fmt::Debug for DebugSet<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0).finish()
    }
}

#[test]
fn a_variable_takes_the_place_of_its_key_and_of_no_other() {
    let variable = |name: &str| {
        Some(OsString::from(match name {
            "STORM_TOKEN_URL" => "https://id.example/token",
            "STORM_API_URL" => "https://api.example",
            "STORM_SCOPE" => "lab",
            "STORM_CLIENT_ID" => "erp",
            "STORM_CLIENT_SECRET" => "0ther",
            "STORM_CLIENT_SECRET_NEXT" => "an0ther",
            "STORM_APPLICATION_ID" => "7",
            _ => return None,
        }))
    };
    let draft = parse(WHOLE).under_variables(variable, |_| panic!("the variables hold the secrets"));
    let from = |field| draft.found().iter().find(|found| found.field == field).unwrap().source;
    assert_eq!(from(Field::TokenUrl), Source::Variable("STORM_TOKEN_URL"));
    assert_eq!(from(Field::ClientSecret), Source::Variable("STORM_CLIENT_SECRET"));
    assert_eq!(from(Field::NextSecret), Source::Variable("STORM_CLIENT_SECRET_NEXT"));
    assert_eq!(from(Field::Egress), Source::Key("egress"));
    let config = draft.finish().unwrap().check().unwrap();
    assert_eq!(config.key.token_url().uri(), "https://id.example/token");
    assert_eq!(config.key.scope().as_str(), Some("lab"));
    assert_eq!(config.key.credentials().client_id(), "erp");
    assert_eq!(config.key.credentials().secret().expose(), "0ther");
    assert_eq!(config.key.credentials().next_secret().map(|secret| secret.expose()), Some("an0ther"));
    let api = config.api.unwrap();
    assert_eq!(api.target("a").unwrap(), "https://api.example/a");
    assert!(!api.allows(&"https://files.acme.example/a".parse().unwrap()), "the list is one value");

    // One alone, and the secret's file by its variable.
    let variable = |name: &str| (name == "STORM_CLIENT_SECRET_FILE").then(|| OsString::from("from-variable"));
    let named = |path: OsString| Ok(path.into_encoded_bytes());
    let config = parse(WHOLE).under_variables(variable, named).finish().unwrap().check().unwrap();
    assert_eq!(config.key.credentials().secret().expose(), "from-variable");
    assert_eq!(config.key.scope().as_str(), Some("stage other"));
    // The second secret's too.
    let variable = |name: &str| (name == "STORM_CLIENT_SECRET_NEXT_FILE").then(|| OsString::from("from-variable"));
    let draft = parse(WHOLE).under_variables(variable, named);
    let next = draft.found().iter().find(|found| found.field == Field::NextSecretFile).unwrap();
    assert_eq!(next.source, Source::Variable("STORM_CLIENT_SECRET_NEXT_FILE"));
    let config = draft.finish().unwrap().check().unwrap();
    assert_eq!(config.key.credentials().next_secret().map(|secret| secret.expose()), Some("from-variable"));
    // What tools set to nothing does not count.
    let variable = |name: &str| name.starts_with("STORM_CLIENT_SECRET").then(OsString::new);
    let config = parse(WHOLE).under_variables(variable, named).finish().unwrap().check().unwrap();
    assert_eq!(config.key.credentials().secret().expose(), "secret");
}

#[test]
fn a_wrong_variable_is_named_and_not_the_key_that_it_hides() {
    for (name, value) in [
        ("STORM_TOKEN_URL", "not a url"),
        ("STORM_API_URL", ""),
        ("STORM_SCOPE", "a  b"),
        ("STORM_CLIENT_ID", "a\n"),
        ("STORM_CLIENT_SECRET", " Canary-7d1f"),
        ("STORM_CLIENT_SECRET_FILE", "missing"),
        ("STORM_CLIENT_SECRET_NEXT", " Canary-7d1f"),
        ("STORM_CLIENT_SECRET_NEXT_FILE", "missing"),
        ("STORM_APPLICATION_ID", "+7"),
    ] {
        let variable = |asked: &str| (asked == name).then(|| OsString::from(value));
        let error = parse(WHOLE).under_variables(variable, file).finish().unwrap_err().to_string();
        assert!(error.contains(&format!("({name}): ")) && !error.contains("Canary"), "{error}");
    }
}

#[test]
fn all_that_is_wrong_is_found_at_once_and_nothing_that_follows_from_it() {
    for (text, expected) in [
        (
            "environment = 'storm-lab'\nscope = ''\nclient_id = ''\nclient_secret_file = 'missing'\napplication_id = 'a'",
            &[Field::Scope, Field::ClientId, Field::ClientSecretFile, Field::ApplicationId][..],
        ),
        ("environment = 'lab'\nclient_id = 'shop'\nclient_secret_file = 'secret'", &[Field::Environment]),
        (
            "environment = 'storm-lab'\nclient_id = ''\nclient_secret_file = 'missing'\nclient_secret_next_file = 'missing'",
            &[Field::ClientId, Field::ClientSecretFile, Field::NextSecretFile],
        ),
        (
            "client_secret = 'S3cret'\nclient_secret_next_file = 7",
            &[Field::TokenUrl, Field::Scope, Field::ClientId, Field::ClientSecret, Field::NextSecretFile],
        ),
        ("client_secret = 'S3cret'", &[Field::TokenUrl, Field::Scope, Field::ClientId, Field::ClientSecret]),
    ] {
        let draft = parse(text).under_variables(|_| None, file);
        let wrong = draft.found().iter().filter(|found| found.fault.is_some()).map(|found| found.field);
        assert_eq!(wrong.collect::<Vec<_>>(), expected, "{text}");
    }
}

#[test]
fn a_path_is_relative_to_the_folder_that_was_named() {
    let read = |path: OsString| Ok(path.into_encoded_bytes());
    let secret = |config: FileSettings| {
        config.settings(read).unwrap().check().unwrap().key.credentials().secret().expose().to_owned()
    };
    assert_eq!(secret(parse(LEAST)), "secret");
    assert_eq!(secret(parse(LEAST).relative_to("/etc/storm")), "/etc/storm/secret");
    let named = parse(LEAST).relative_to("/etc/storm").secret_file();
    assert_eq!(named.as_deref(), Some(std::path::Path::new("/etc/storm/secret")));
    assert_eq!(parse("client_secret_file = 7").secret_file(), None);
    let next = parse("client_secret_next_file = 'next'").relative_to("/etc/storm");
    assert_eq!(next.next_secret_file().as_deref(), Some(std::path::Path::new("/etc/storm/next")));
    assert_eq!((next.secret_file(), parse(LEAST).next_secret_file()), (None, None));
    let absolute = LEAST.replace("'secret'", "'/run/secret'");
    assert_eq!(secret(parse(&absolute).relative_to("/etc/storm")), "/run/secret");
}

#[test]
fn r3_a_secret_that_a_program_hands_in_counts_where_none_is_set_and_is_checked() {
    let text = "environment = 'storm-lab'\nclient_id = 'shop'";
    let draft = || parse(text).under_variables(|_| None, file);
    let secret = |draft: storm_auth_core::config_file::Draft| {
        draft.finish().unwrap().check().unwrap().key.credentials().secret().expose().to_owned()
    };
    assert!(draft().lacks_secret());
    let given = draft().with_secret("S3cret typed");
    assert_eq!(given.found().last().unwrap().source, Source::Program);
    assert!(!given.lacks_secret());
    assert_eq!(secret(given), "S3cret typed");
    let error = draft().with_secret("Canary-7d1f ").finish().unwrap_err().to_string();
    assert_eq!(error, "client secret (STORM_CLIENT_SECRET): white space at its start or end; remove it");
    // The second one that is set stays.
    let text = format!("{text}\nclient_secret_next_file = 'next'");
    let draft = parse(&text).under_variables(|_| None, file).with_secret("S3cret");
    let config = draft.finish().unwrap().check().unwrap();
    let secrets = (config.key.credentials().secret(), config.key.credentials().next_secret().unwrap());
    assert_eq!((secrets.0.expose(), secrets.1.expose()), ("S3cret", "Successor"));
    // A wrong id stays wrong, and a secret that is set stays.
    let draft =
        parse("environment = 'storm-lab'\nclient_id = ''").under_variables(|_| None, file).with_secret("S3cret");
    assert_eq!(draft.finish().unwrap_err().field(), Field::ClientId);
    assert_eq!(secret(parse(LEAST).under_variables(|_| None, file).with_secret("another")), "S3cret");
}
