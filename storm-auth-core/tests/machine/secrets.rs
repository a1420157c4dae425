//! R57, R58, R60, R61: what holds a secret, and what never shows one.

use std::collections::BTreeSet;

use proptest::prelude::*;
use storm_auth_core::machine::Acquire;
use storm_auth_core::wire::request::FormBody;
use storm_auth_core::wire::response::{AccessToken, ResponseBody};
use storm_auth_core::{ClientSecret, Credentials, Failure, FailureKind, Policy, Token};

use crate::harness::{Lab, granted, json, key, oauth_error, retry_after, secs, status};

/// Fails to compile when the type has the trait: which of two impls is meant is then open.
macro_rules! has_not {
    ($type:ty: $($bound:path),+) => {
        const _: () = {
            trait Open<A> {
                fn which() {}
            }
            impl<T: ?Sized> Open<()> for T {}
            $({
                struct Has;
                impl<T: ?Sized + $bound> Open<Has> for T {}
                let _ = <$type as Open<_>>::which;
            })+
        };
    };
}

has_not!(ClientSecret: PartialEq, serde::Serialize, std::fmt::Display);
has_not!(Credentials: PartialEq, serde::Serialize, std::fmt::Display);
has_not!(Token: PartialEq, serde::Serialize, std::fmt::Display);
has_not!(AccessToken: PartialEq, serde::Serialize, std::fmt::Display);
has_not!(FormBody: PartialEq, serde::Serialize, std::fmt::Display);
has_not!(ResponseBody: PartialEq, serde::Serialize, std::fmt::Display);

#[test]
fn r61_secret_types_have_no_partial_eq_serialize_or_display() {
    // The constants above are the test; this is its name.
}

#[test]
fn r57_every_header_that_carries_a_token_is_sensitive() {
    let (mut lab, key) = Lab::with_key();
    let token = lab.fetch(key, "canary", 600);
    let Acquire::Ready(cached) = lab.acquire(key) else { panic!() };
    let peeked = lab.machine.peek(key, lab.now()).unwrap().token;
    for token in [token, cached, peeked, Token::fake("canary")] {
        let header = token.header();
        assert!(header.is_sensitive() && header.clone().is_sensitive());
        assert_eq!(header, "Bearer canary");
        assert_eq!(format!("{header:?}"), "Sensitive");
    }
}

#[test]
fn r58_a_token_in_debug_is_its_identity_and_times() {
    let (mut lab, key) = Lab::with_key();
    let token = lab.fetch(key, "canary", 600);
    // The first four bytes of the token's SHA-256 tell tokens apart in a log.
    assert_eq!(format!("{:?}", token.id()), format!("TokenId({}:e100fbce)", key.index()));
    assert_eq!(
        format!("{token:?}"),
        format!(
            "Token {{ id: {:?}, expires_at: {}, granted_scope: Some(\"lab\"), .. }}",
            token.id(),
            token.expires_at()
        )
    );
}

#[test]
fn r60_a_tokens_bytes_are_in_one_place_however_often_it_is_handed_out() {
    let (mut lab, key) = Lab::with_key();
    let token = lab.fetch(key, "canary", 600);
    let place = token.header().as_bytes().as_ptr();
    let Acquire::Ready(again) = lab.acquire(key) else { panic!() };
    assert_eq!(again.header().as_bytes().as_ptr(), place);
    let clones = [again.clone(), again.clone()];
    assert!(clones.iter().all(|token| token.header().as_bytes().as_ptr() == place));
    assert_eq!(again.expose().as_ptr(), again.header().as_bytes()["Bearer ".len()..].as_ptr());
}

const SECRET: &str = "canary/5ecret+of=the&client%20of~ours";
const TOKEN: &str = "canary.t0ken.0123456789abcdef-0123456789ABCDEF";

/// Whether eight consecutive bytes of a canary, plain or form-encoded, show in a text.
fn shows(text: &str) -> bool {
    let encoded: String = form_urlencoded::byte_serialize(SECRET.as_bytes()).collect();
    let canaries = [SECRET, TOKEN, &encoded];
    let windows: BTreeSet<&[u8]> = canaries.iter().flat_map(|canary| canary.as_bytes().windows(8)).collect();
    text.as_bytes().windows(8).any(|shown| windows.contains(shown))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, max_shrink_iters: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn r58_nothing_shows_the_secret_or_a_token(steps in proptest::collection::vec(0..12_usize, 1..40)) {
        let mut lab = Lab::with_policy(Policy::default());
        let id = lab.machine.add_key(key("shop", SECRET), lab.now());
        let mut texts = Vec::new();
        for step in steps {
            // A token that this client does not hold is no business of its own.
            let held = if lab.machine.peek(id, lab.now()).is_some() { TOKEN } else { "none" };
            let echo = format!(r#"{{"error":"{held}","error_description":"{SECRET} {held}","error_uri":"{SECRET}"}}"#);
            match step {
                0 | 1 => {
                    let acquire = lab.acquire(id);
                    if let Acquire::Ready(token) = &acquire {
                        texts.push(format!("{:?}", token.header()));
                    }
                    texts.push(format!("{acquire:?}"));
                    if let Acquire::Failed(error) = acquire {
                        texts.push(format!("{error} {:?} {:?}", std::error::Error::source(&error), error.refusal()));
                    }
                }
                2 => lab.drive(secs(30)),
                3 => lab.drive(secs(400)),
                4 => {
                    if let Some(peek) = lab.machine.peek(id, lab.now()) {
                        lab.machine.invalidate(peek.token.id(), lab.now());
                    }
                }
                5 => lab.machine.note_abandoned_replay(Token::fake(TOKEN).id(), None),
                _ if lab.sends.is_empty() => {}
                6 | 7 => _ = lab.answer(granted(TOKEN, 600)),
                8 => _ = lab.answer(json(400, &echo)),
                9 => {
                    let op = lab.sends.pop_front().unwrap().op;
                    lab.machine.handle_failure(op, Failure::new(FailureKind::Io, echo), lab.now());
                    lab.drain();
                }
                10 => _ = lab.answer(retry_after(json(429, &echo), SECRET)),
                _ => {
                    let scope = format!(r#"{{"access_token":"{TOKEN}","expires_in":600,"token_type":"Bearer","scope":"{SECRET} {TOKEN}"}}"#);
                    lab.answer(json(200, &scope));
                }
            }
            texts.push(format!("{:?} {:?} {:?}", lab.machine, lab.sends, lab.machine.status(lab.now())));
        }
        texts.extend(lab.events.iter().map(|event| format!("{event} {event:?}")));
        texts.extend(lab.transcript.iter().cloned());
        texts.extend(lab.take_results().into_values().map(|result| match result {
            Ok(token) => format!("{token:?}"),
            Err(error) => format!("{error} {error:?}"),
        }));
        for text in texts {
            prop_assert!(!shows(&text), "{}", text);
        }
    }
}

#[test]
fn r58_no_text_tells_the_length_of_a_secret_or_a_token() {
    // The same story with other lengths reads the same, but for the token's identity.
    let story = |secret: &str, token: &str| {
        let mut lab = Lab::new();
        let id = lab.machine.add_key(key("shop", secret), lab.now());
        let waiter = lab.wait(id);
        let request = format!("{:?}", lab.sends);
        lab.answer(oauth_error(400, "invalid_client"));
        let error = format!("{:?}", lab.result(waiter).unwrap_err());
        lab.drive_to(60_000);
        let token = lab.fetch(id, token, 600);
        let shown = format!("{token:?}").replace(&format!("{:?}", token.id()), "");
        lab.drive_to(660_000);
        lab.wait(id);
        lab.answer(status(500));
        format!("{request} {error} {shown} {:?}", lab.machine.counters())
    };
    assert_eq!(story("s", "t"), story(&"s".repeat(90), &"t".repeat(2_000)));
}
