//! Differential conformance: one table of scripts, run against our broker and against the real nats-server, which must
//! both answer to the letter. `script` is the language, `cases/` the table by theme, `setup` what both servers
//! are told and `server` starts them, `run` and `peer` are the players.
//!
//! Each script is played once with every step written in one piece, and several times cut at random byte boundaries. The
//! cuts come from a fixed seed; `ORCHARD_TEST_SEED` chooses another one.

mod certificate;
mod claims;
mod info;
mod keys;
mod peer;
mod run;
mod script;
mod server;
mod setup;

use std::collections::HashSet;
use std::path::Path;

use script::Case;
use setup::Setup;

/// What issue 3 asks for.
const MIN_CASES: usize = 150;

macro_rules! setups {
    ($($test:ident: $setup:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                run::both(Setup::$setup).await;
            }
        )*

        /// Those that a test above plays.
        const PLAYED: &[Setup] = &[$(Setup::$setup),*];
    };
}

setups! {
    an_open_server_answers_like_nats_server: Open,
    small_limits_answer_like_nats_server: Small,
    users_and_permissions_answer_like_nats_server: Users,
    a_token_answers_like_nats_server: Token,
    nkeys_answer_like_nats_server: Nkey,
    claims_that_end_answer_like_nats_server: Claims,
    too_many_connections_answer_like_nats_server: Crowded,
    who_is_too_late_is_answered_like_by_nats_server: Impatient,
    pings_are_answered_like_by_nats_server: Pinging,
    the_right_to_answer_ends_like_in_nats_server: Answers,
    a_lame_duck_answers_like_nats_server: Leaving,
    changed_users_are_treated_like_by_nats_server: Changing,
    tls_answers_like_nats_server: Tls,
    tls_first_answers_like_nats_server: TlsFirst,
    tls_first_for_the_quick_answers_like_nats_server: TlsWithin,
    tls_first_or_after_info_answers_like_nats_server: TlsAuto,
    client_certificates_are_asked_for_like_by_nats_server: TlsVerify,
    a_late_handshake_answers_like_nats_server: TlsImpatient,
    too_many_connections_over_tls_answer_like_nats_server: TlsCrowded,
    too_many_connections_before_tls_answer_like_nats_server: TlsFirstCrowded,
}

/// The whole table.
fn cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/all/conformance/cases");
    let mut files: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().flat_map(|file| script::cases(&std::fs::read_to_string(file).unwrap())).collect()
}

#[test]
fn the_table_is_whole() {
    let cases = cases();
    assert!(cases.len() >= MIN_CASES, "only {} cases", cases.len());
    let mut names = HashSet::new();
    for case in &cases {
        assert!(names.insert(&case.name), "two cases are called {:?}", case.name);
        assert!(PLAYED.contains(&case.setup), "nobody plays {:?}", case.name);
        let script = script::parse(&case.script).unwrap_or_else(|wrong| panic!("{}: {wrong}", case.name));
        let differs = script.iter().any(|step| step.only.is_some()) || case.uncut;
        assert_eq!(
            differs,
            case.because.is_some(),
            "{}: a difference has a reason, and a reason a difference",
            case.name
        );
    }
}
