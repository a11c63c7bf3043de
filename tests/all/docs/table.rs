//! Where each block of commands of the pages is run.

/// Where, and why not as it stands by this test.
#[derive(Clone, Copy, Debug)]
pub(super) enum Runs {
    /// As it stands, on a machine of its own, by the script of the page: see [`script_of`].
    OnItsMachine,
    /// By this file; how, where that is not as it stands.
    By(&'static str, &'static str),
}

use Runs::{By, OnItsMachine};

/// The script that goes through a page on a machine of its own.
pub(super) fn script_of(page: &str) -> &'static str {
    match page {
        "deploy/README.md" => "deploy/check/inside.sh",
        _ => "deploy/check/front.sh",
    }
}

/// The page, the heading above, which block below it, where it is run.
pub(super) const BLOCKS: &[(&str, &str, usize, Runs)] = &[
    (
        "README.md",
        "Orchard",
        1,
        By(".ci/run", "as they stand, the quickstart with --once, as nobody is there to end it"),
    ),
    ("README.md", "Controller and workers on several machines", 1, OnItsMachine),
    ("README.md", "Controller and workers on several machines", 2, OnItsMachine),
    ("README.md", "With plain `ssh`: the jump host", 1, OnItsMachine),
    ("README.md", "Backups", 1, OnItsMachine),
    ("README.md", "Backups", 2, OnItsMachine),
    ("README.md", "Ways into a VM", 1, OnItsMachine),
    ("README.md", "The broker alone", 1, OnItsMachine),
    ("README.md", "Development", 1, By(".ci/run", "cargo bench takes an hour and is run by hand")),
    (
        "deploy/README.md",
        "Install",
        1,
        By("deploy/check.sh", "with --debug: the optimised program would cost each change some minutes more"),
    ),
    ("deploy/README.md", "Install", 2, OnItsMachine),
    ("deploy/README.md", "The controller", 1, OnItsMachine),
    ("deploy/README.md", "The controller", 2, OnItsMachine),
    ("deploy/README.md", "The controller", 3, OnItsMachine),
    ("deploy/README.md", "The controller", 4, OnItsMachine),
    ("deploy/README.md", "Workers", 1, OnItsMachine),
    ("deploy/README.md", "Workers", 2, OnItsMachine),
    ("deploy/README.md", "Workers", 3, OnItsMachine),
    (
        "deploy/README.md",
        "Containers",
        1,
        By(
            "deploy/check.sh",
            "with the unoptimised program, and docker-compose where Docker has no compose of its own",
        ),
    ),
    ("deploy/README.md", "Upgrade", 1, OnItsMachine),
    ("deploy/README.md", "Backup and restore", 1, OnItsMachine),
    ("deploy/README.md", "Backup and restore", 2, OnItsMachine),
    ("deploy/README.md", "Taking it away", 1, OnItsMachine),
    ("deploy/examples/README.md", "Programs that follow a cluster", 1, OnItsMachine),
];
