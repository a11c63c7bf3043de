//! What the command line of the Orchard that users come from takes and this one does not: the error names what is there instead.
//! Pure.

use clap::Error;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::typed::Typed;

/// Command, argument, and what to do instead. `*` is whatever stands there and is no option.
const INSTEAD: &[(&str, &str, &str)] = &[
    ("controller", "--data-dir", "it stands behind the command: `orchard controller run --data-dir DIR`"),
    ("controller run", "-l", "give `--listen ADDR` for the tunnels (UDP) and `--bus-listen ADDR` for the bus (TCP)"),
    ("controller run", "--api-prefix", "there is no HTTP API; clients and workers come over NATS and QUIC"),
    ("controller run", "--debug", "`-v` tells more in the log, `-vv` everything"),
    (
        "controller run",
        "--listen-pprof",
        "`--listen-metrics ADDR` serves figures for Prometheus; there are no profiles",
    ),
    (
        "controller run",
        "--worker-offline-timeout",
        "`--lease DURATION` is how long a worker may be silent; only VMs with --on-unseen replace are ended for that",
    ),
    (
        "controller run",
        "--insecure-ssh-no-client-auth",
        "the jump host lets accounts in and nobody else, by token or by key (`orchard create service-account --ssh-key`)",
    ),
    (
        "controller run",
        "--exec-session-retention-ttl",
        "leave it out: workers keep a session for ten minutes after its end",
    ),
    (
        "controller run",
        "--exec-ssh-connection-keepalive-interval",
        "leave it out: a guest that hangs is noticed anyhow",
    ),
    ("controller run", "--experimental-rpc-v2", "leave it out: workers have one protocol"),
    ("controller run", "--no-experimental-rpc-v2", "leave it out: workers have one protocol"),
    ("controller run", "--experimental-ping-interval", "leave it out: connections that are silent are noticed anyhow"),
    ("controller run", "--experimental-disable-db-compression", "leave it out: nothing is compressed"),
    ("controller run", "--synthetic", "leave it out: which runtime there is, each worker says"),
    ("worker run", "--log-file", "the log goes to standard error; send it to a file with `2>> FILE`"),
    (
        "worker run",
        "--no-pki",
        "leave it out: the bootstrap token says which certificate to trust, and then no other is trusted",
    ),
    ("worker run", "--debug", "`-v` tells more in the log, `-vv` everything"),
    ("worker run", "--workers", "a process is one worker; `orchard dev --workers N` has several, to try things out"),
    ("worker run", "--synthetic", "give `--runtime synthetic`"),
    ("worker run", "--listen-pprof", "`--listen-metrics ADDR` serves figures for Prometheus; there are no profiles"),
    ("dev", "--resources", "run a worker of your own: `orchard worker run --resources K=N`"),
    ("dev", "--api-prefix", "there is no HTTP API; clients and workers come over NATS and QUIC"),
    ("dev", "--synthetic", "give `--runtime synthetic`"),
    ("dev", "--listen-pprof", "`--listen-metrics ADDR` serves figures for Prometheus; there are no profiles"),
    ("dev", "--experimental-rpc-v2", "leave it out: workers have one protocol"),
    (
        "get bootstrap-token",
        "*",
        "leave it out: a bootstrap token lets a machine join, and is no account's; `--worker NAME` is for one worker alone",
    ),
    (
        "context create",
        "--bootstrap-token",
        "it lets a machine join and no person in; log in as an account: --service-account-name and \
         --service-account-token-stdin (`orchard create service-account` makes one)",
    ),
];

/// The same of arguments that are there but not together.
const APART: &[(&str, &str, &str)] =
    &[("worker run", "[BUS_URL]", "leave the address out: the bootstrap token says where the controller is")];

/// What to do instead of what `error` refuses, if what was typed is of that other command line.
pub(super) fn hint(error: &Error, typed: &Typed<'_>) -> Option<&'static str> {
    let table = match error.kind() {
        ErrorKind::UnknownArgument => INSTEAD,
        ErrorKind::ArgumentConflict => APART,
        _ => return None,
    };
    let path = typed.path.join(" ");
    let found = table.iter().find(|(command, argument, _)| is_within(&path, command) && is_meant(error, argument));
    found.map(|(_, _, hint)| *hint)
}

fn is_within(path: &str, command: &str) -> bool {
    path.strip_prefix(command).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
}

/// Whether the error is about this argument.
fn is_meant(error: &Error, argument: &str) -> bool {
    let told = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => vec![text.as_str()],
        Some(ContextValue::Strings(texts)) => texts.iter().map(String::as_str).collect(),
        _ => Vec::new(),
    };
    let mut told = told(ContextKind::InvalidArg).into_iter().chain(told(ContextKind::PriorArg));
    told.any(|told| match argument {
        "*" => !told.starts_with('-'),
        option => told.split(['=', ' ']).next() == Some(option),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(line: &str) -> String {
        let typed: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let given = ["orchard"].into_iter().chain(line.split(' ')).map(Into::into).collect();
        super::super::read(given, &typed).unwrap_err().to_string()
    }

    #[test]
    fn every_hint_is_given_where_the_argument_is_not_taken() {
        for (command, argument, hint) in INSTEAD {
            let argument = argument.replace('*', "ci");
            let rest = match *command {
                "context create" => "ctl ",
                _ => "",
            };
            for line in [format!("{command} {rest}{argument}"), format!("{command} {rest}{argument} x")] {
                let said = said(&line);
                assert!(said.starts_with("error: ") && said.contains(hint), "{line}: {said}");
                assert_eq!(said.matches("tip:").count(), 1, "{line}: {said}");
            }
        }
        assert!(said("controller --data-dir /x run").contains("orchard controller run --data-dir DIR"));
        assert!(said("worker run ctl --bootstrap-token t").contains("leave the address out"));
    }

    #[test]
    fn other_errors_are_left_as_they_are() {
        for line in [
            "worker run --log",
            "worker run --bootstrap-token t --bootstrap-token-stdin",
            "list vms --debug",
            "create vm a --synthetic",
            "get bootstrap-token --uses",
            "--context run worker --debug",
            "list vms --context run --log-file",
        ] {
            assert!(!said(line).contains("the address out"), "{line}: {}", said(line));
            assert!(!said(line).contains("standard error") && !said(line).contains("-vv"), "{line}: {}", said(line));
        }
    }
}
