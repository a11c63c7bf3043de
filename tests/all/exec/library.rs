//! Exec sessions by the client library, in the guest of [`super`].

use orchard::client::Client;
use orchard::client::exec::Exec;
use orchard::model::error::ErrorCode;
use orchard::tunnel::exec::{OpenExec, RunExec, Told};

use super::text;
use crate::harness::{Cluster, LIMIT};

/// Begins, follows, lists and ends a session.
pub(super) async fn a_program_runs_commands(cluster: &Cluster) {
    let client = Client::log_in(cluster.access.target()).await.unwrap();
    let (dialer, vm) = (client.dialer(), "box".parse().unwrap());
    let open = |line| OpenExec { session: "library".into(), after: 0, run: Some(RunExec::shell(line)) };
    let all = async |mut exec: Exec| {
        let mut heard = (String::new(), String::new());
        loop {
            match tokio::time::timeout(LIMIT, exec.next()).await.unwrap().unwrap() {
                Told::Stdout { data, .. } => heard.0 += &text(&data),
                Told::Stderr { data, .. } => heard.1 += &text(&data),
                Told::Exited { code, .. } => return (heard.0, heard.1, code),
                other => panic!("{other:?}"),
            }
        }
    };
    let line = "echo out; echo err >&2; exit 3";
    let expected = ("out\n".to_owned(), "err\n".to_owned(), 3);
    assert_eq!(all(Exec::attach(&dialer, &vm, open(line)).await.unwrap()).await, expected);
    // Once more, and it is told from its records: the command ran once.
    assert_eq!(all(Exec::attach(&dialer, &vm, open(line)).await.unwrap()).await, expected);
    assert_eq!(Exec::attach(&dialer, &vm, open("true")).await.unwrap_err().code, ErrorCode::Conflict);
    let listed = Exec::list(&dialer, &vm).await.unwrap();
    let of = listed.iter().find(|session| session.session == "library").unwrap();
    assert_eq!((of.code, of.command.as_str()), (Some(3), line));
    Exec::end(&dialer, &vm, "library").await.unwrap();
    assert_eq!(Exec::end(&dialer, &vm, "library").await.unwrap_err().code, ErrorCode::NotFound);
    dialer.close().await;
}
