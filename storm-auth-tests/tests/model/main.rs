//! The machine against a small model of it, command by command.
//!
//! [`reference`] says what must come out: what each caller gets and when, what is sent and with which secret, which token is
//! held and until when, and what the getters say. [`stage`] plays a story to both and compares after each command.

#![allow(clippy::unwrap_used, reason = "what the tests share stands outside of their functions")]

mod reference;
mod stage;

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::FileFailurePersistence;
use stage::{CLIENTS, Command, Found, Setting, Stage, Wire};
use storm_auth_core::FailureKind;

/// Whole seconds and their neighbours, since those are where rules change; and anything between.
fn span() -> impl Strategy<Value = u64> {
    let edges =
        [1, 999, 1_000, 5_000, 10_000, 19_999, 20_000, 20_500, 30_000, 60_000, 300_000, 420_000, 450_000, 588_000];
    prop_oneof![3 => select(edges.to_vec()), 2 => 0..2_000_u64, 2 => 2_000..60_000_u64, 1 => 60_000..4_000_000_u64]
}

fn retry_after() -> impl Strategy<Value = Option<u64>> {
    prop_oneof![2 => Just(None), 1 => select(vec![0, 1, 7, 30, 120, 3_600, 99_999]).prop_map(Some)]
}

fn wire() -> impl Strategy<Value = Wire> {
    let lifetime = || select(vec![0_u64, 1, 2, 20, 60, 120, 500, 600, 3_600, 86_400, 1_000_000]);
    let error = || {
        let client = Some("invalid_client");
        select(vec![None, None, client, client, Some("invalid_scope"), Some("odd")])
    };
    let status = || select(vec![301_u16, 400, 401, 403, 404, 405, 418, 429, 429, 500, 502, 503]);
    let kind = select(vec![FailureKind::Connect, FailureKind::Timeout, FailureKind::Io, FailureKind::Aborted]);
    prop_oneof![
        8 => lifetime().prop_map(|lifetime| Wire::Token { lifetime, retry_after: None }),
        1 => (lifetime(), retry_after()).prop_map(|(lifetime, retry_after)| Wire::Token { lifetime, retry_after }),
        1 => lifetime().prop_map(|lifetime| Wire::SameToken { lifetime }),
        5 => (status(), error(), retry_after())
            .prop_map(|(status, error, retry_after)| Wire::Error { status, error, retry_after }),
        1 => Just(Wire::Unusable),
        3 => kind.prop_map(|kind| Wire::Fail { kind }),
    ]
}

fn next() -> impl Strategy<Value = Option<u8>> {
    prop_oneof![Just(None), (0..3_u8).prop_map(Some)]
}

fn found() -> impl Strategy<Value = Found> {
    prop_oneof![
        4 => (0..3_u8, next()).prop_map(|(secret, next)| Found::Secrets { secret, next }),
        1 => Just(Found::AnotherClients),
        1 => Just(Found::Nothing),
    ]
}

fn command() -> impl Strategy<Value = Command> {
    let key = || 0..CLIENTS.len();
    let patience =
        prop_oneof![2 => Just(None), 1 => Just(Some(0)), 3 => span().prop_map(Some), 1 => Just(Some(u64::MAX))];
    prop_oneof![
        16 => (key(), patience).prop_map(|(key, patience)| Command::Acquire { key, patience }),
        2 => (0..8_usize).prop_map(|waiter| Command::Cancel { waiter }),
        2 => key().prop_map(|key| Command::RejectCurrent { key }),
        1 => (0..20_usize).prop_map(|token| Command::RejectSeen { token }),
        2 => (key(), 0..3_u8, next()).prop_map(|(key, secret, next)| Command::SetSecret { key, secret, next }),
        1 => (key(), 0..3_u8, next()).prop_map(|(client, secret, next)| Command::AddKey { client, secret, next }),
        1 => key().prop_map(|key| Command::Renew { key }),
        3 => (0..4_usize, found()).prop_map(|(look, with)| Command::ComeBack { look, with }),
        1 => (0..8_usize).prop_map(|look| Command::ComeBackLate { look }),
        1 => key().prop_map(|key| Command::KeepWarm { key }),
        1 => key().prop_map(|key| Command::KeepCold { key }),
        1 => prop_oneof![
            3 => Just(Command::RejectForeign),
            3 => key().prop_map(|key| Command::SetOtherClient { key }),
            4 => key().prop_map(|key| Command::RemoveKey { key }),
            2 => Just(Command::ShutDown),
        ],
        16 => (0..4_usize, wire()).prop_map(|(request, with)| Command::Answer { request, with }),
        1 => (0..8_usize, wire()).prop_map(|(request, with)| Command::AnswerLate { request, with }),
        12 => span().prop_map(|span| Command::Advance { span }),
        3 => span().prop_map(|span| Command::Sleep { span }),
        1 => span().prop_map(|span| Command::WallForward { span }),
        1 => span().prop_map(|span| Command::WallBack { span }),
    ]
}

fn setting() -> impl Strategy<Value = Setting> {
    let budget = select(vec![Some((3, 20)), Some((3, 20)), Some((3, 1)), Some((3, 0)), Some((60, 2)), None]);
    (budget, select(vec![0, 0, 60, 900]), 0..4_u64).prop_map(|(budget, stale, seed)| Setting { budget, stale, seed })
}

proptest! {
    // `PROPTEST_CASES` is how many stories are told; a failing one is kept beside the crate and told again first.
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(REGRESSIONS))),
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn r20_r24_r25_r27_r36_r43_r79_the_machine_does_what_the_model_says(
        setting in setting(),
        commands in proptest::collection::vec(command(), 1..150),
    ) {
        let mut stage = Stage::new(setting);
        commands.iter().for_each(|command| stage.play(command));
        stage.come_to_rest();
    }
}

const REGRESSIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/model.txt");
