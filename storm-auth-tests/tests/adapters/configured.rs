//! Clients that are built from a configuration file.

use std::{fs, path::PathBuf};

use storm_auth_core::FileSettings;
use storm_auth_tests::emulator::{Emulator, Endpoint};

use crate::face::{Adapter, credentials, get, until};

both!(
    r3_a_configuration_file_is_enough_for_a_call,
    r3_a_wrong_key_and_a_secret_that_cannot_be_read_are_named,
    r43_the_secrets_file_that_a_configuration_file_names_is_read_again,
    r43_credentials_that_are_set_take_the_place_of_those_in_a_file,
);

/// A folder with the file of a secret in it.
struct Folder(PathBuf);

impl Folder {
    fn of<A: Adapter>(name: &str, secret: &[u8]) -> Self {
        let adapter = std::any::type_name::<A>().rsplit(':').next().unwrap();
        let folder =
            PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{adapter}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("secret"), secret).unwrap();
        Self(folder)
    }

    /// The settings of an emulator, with a line more.
    fn config(&self, emulator: &Emulator, line: &str) -> FileSettings {
        let (token_url, api_url) = (emulator.token_url(), emulator.api_url());
        let (scope, id) = (emulator.scope(), emulator.client_id());
        let text = format!(
            "token_url = '{token_url}'\napi_url = '{api_url}'\nscope = '{scope}'\nclient_id = '{id}'\n{line}\n\
             client_secret_file = 'secret'\n"
        );
        toml::from_str::<FileSettings>(&text).unwrap().relative_to(&self.0)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn r3_a_configuration_file_is_enough_for_a_call<A: Adapter>() {
    let emulator = Emulator::start();
    let folder = Folder::of::<A>("configured", format!("{}\n", emulator.client_secret()).as_bytes());
    let config = folder.config(&emulator, "application_id = 7\napplication_header = 'application-id'");
    // No variable of the settings is set where tests run.
    for client in [A::configured(&config), A::configured_under_variables(&config)] {
        assert_eq!(A::call(&client.unwrap(), get("/a")).unwrap().status, 200);
    }
    assert_eq!(emulator.recorded(Endpoint::Api).pop().unwrap().headers["application-id"], "7");
}

fn r43_the_secrets_file_that_a_configuration_file_names_is_read_again<A: Adapter>() {
    let emulator = Emulator::start();
    let folder = Folder::of::<A>("rotated", emulator.client_secret().as_bytes());
    let config = folder.config(&emulator, "application_id = 7");
    let clients = [A::configured(&config), A::configured_under_variables(&config)].map(Result::unwrap);
    for client in &clients {
        assert_eq!(A::call(client, get("/a")).unwrap().status, 200);
    }
    emulator.rotate_secret(emulator.client_id(), "Successor");
    fs::write(folder.0.join("secret"), "Successor\n").unwrap();
    emulator.revoke_all();
    for client in &clients {
        // Where the refusal comes before what the file says, this call fails, and the next one does not.
        until("the file is read", || A::call(client, get("/a")).is_ok_and(|answer| answer.status == 200));
    }
}

fn r43_credentials_that_are_set_take_the_place_of_those_in_a_file<A: Adapter>() {
    let emulator = Emulator::start();
    let folder = Folder::of::<A>("replaced", b"wrong");
    let client = A::configured_with(&folder.config(&emulator, "application_id = 7"), credentials(&emulator)).unwrap();
    assert_eq!(A::call(&client, get("/a")).unwrap().status, 200);
    emulator.revoke_all();
    assert_eq!(A::call(&client, get("/a")).unwrap().status, 200);
}

fn r3_a_wrong_key_and_a_secret_that_cannot_be_read_are_named<A: Adapter>() {
    let emulator = Emulator::start();
    let long = Folder::of::<A>("too-long", &[b'a'; 64 * 1024 + 1]);
    let refused = |config: &FileSettings, words: &str| {
        for failed in [A::configured(config), A::configured_under_variables(config)] {
            let failed = failed.unwrap_err();
            assert!(failed.is_configuration && failed.text.contains(words), "{}", failed.text);
        }
    };
    refused(
        &long.config(&emulator, ""),
        "client secret file (client_secret_file in the configuration file): longer than 64 KiB",
    );
    refused(&long.config(&emulator, "egress = 7"), "(client_secret_file in the configuration file)");
    let folder = Folder::of::<A>("wrong-key", b"S3cret");
    refused(&folder.config(&emulator, "egress = 7"), "egress label (egress in the configuration file): not a text");
    fs::remove_file(folder.0.join("secret")).unwrap();
    refused(&folder.config(&emulator, ""), "there is no such file; check the path");
    assert_eq!(emulator.token_requests(), 0);
}
