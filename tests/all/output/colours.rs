//! Colours: on a terminal, unless somebody wants none.

use std::sync::Arc;

use orchard::worker::runtime::synthetic::Synthetic;

use crate::contexts::in_terminal;
use crate::harness::Cluster;

#[tokio::test(flavor = "multi_thread")]
async fn states_and_events_have_colours_on_a_terminal_unless_somebody_wants_none() {
    let mut cluster = Cluster::start().await;
    cluster.add_worker("w1", Arc::new(Synthetic::new())).await;
    cluster.run(&["create", "vm", "a", "--image", "any", "--wait"]).await;
    let shown = async |arguments: &[&str], variables: &[(&str, &str)]| {
        let mut command = cluster.cli(arguments);
        command.env("PATH", "/usr/bin:/bin").envs(variables.iter().copied());
        let shown = in_terminal(command, &[]).await;
        assert_eq!(shown.code, Some(0), "{shown:?}");
        shown.stdout
    };
    let (list, events) = (&["list", "vms"][..], &["events"][..]);
    let coloured = shown(list, &[("TERM", "xterm")]).await;
    assert!(coloured.contains("\u{1b}[32mrunning\u{1b}[0m"), "{coloured:?}");
    let coloured = shown(events, &[("TERM", "xterm")]).await;
    assert!(coloured.contains("  vm/a  created  ") && coloured.contains("  \u{1b}[32mready\u{1b}[0m"), "{coloured:?}");
    for variables in [&[("TERM", "xterm"), ("NO_COLOR", "1")][..], &[("TERM", "dumb")]] {
        for arguments in [list, events] {
            let plain = shown(arguments, variables).await;
            assert!(plain.contains("running") && !plain.contains('\u{1b}'), "{variables:?}: {plain:?}");
        }
    }
    // A pipe gets none in any case.
    for arguments in [list, events] {
        assert!(!cluster.run(arguments).await.contains('\u{1b}'));
    }
}
