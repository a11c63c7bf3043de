//! Enforces the shape of the house: which module may name which, which files are pure, and a few habits that a
//! search over the source can check.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Module → modules it may name besides itself.
const MAY_NAME: &[(&str, &[&str])] = &[
    ("duplex", &[]),
    ("task", &[]),
    ("model", &[]),
    ("metrics", &["task"]),
    ("identity", &["model"]),
    ("trace", &["identity"]),
    ("config", &["identity", "model"]),
    ("bus", &["identity", "model", "task", "trace"]),
    ("broker", &["identity", "model", "task"]),
    ("tunnel", &["duplex", "identity", "model", "task"]),
    ("ssh", &["identity", "model", "task"]),
    ("vnc", &["model"]),
    ("client", &["bus", "config", "duplex", "identity", "model", "tunnel"]),
    ("controller", &["broker", "bus", "config", "identity", "metrics", "model", "ssh", "task", "trace", "tunnel"]),
    ("worker", &["bus", "config", "duplex", "identity", "metrics", "model", "ssh", "task", "trace", "tunnel"]),
    // Unit tests only.
    ("simulation", &["bus", "controller", "model", "worker"]),
    (
        "cli",
        &[
            "broker",
            "bus",
            "client",
            "config",
            "controller",
            "duplex",
            "identity",
            "metrics",
            "model",
            "ssh",
            "task",
            "trace",
            "tunnel",
            "vnc",
            "worker",
        ],
    ),
];

/// Files (or folders) of pure code.
const PURE: &[&str] = &[
    "model/access.rs",
    "model/condition.rs",
    "model/account.rs",
    "model/audit.rs",
    "model/event.rs",
    "model/features.rs",
    "model/image.rs",
    "model/error.rs",
    "model/place.rs",
    "model/request.rs",
    "model/resources.rs",
    "model/vm.rs",
    "model/worker.rs",
    "bus/access.rs",
    "bus/encoding.rs",
    "bus/images.rs",
    "bus/inventory.rs",
    "bus/log.rs",
    "bus/life.rs",
    "bus/placing.rs",
    "bus/subject.rs",
    "bus/message.rs",
    "bus/parts.rs",
    "bus/status.rs",
    "bus/traces.rs",
    "broker/protocol",
    "broker/trie",
    "broker/session.rs",
    "broker/pace.rs",
    "broker/permission",
    "broker/replies.rs",
    "broker/subject.rs",
    "tunnel/exec.rs",
    "tunnel/header.rs",
    "tunnel/resume/end.rs",
    "tunnel/resume/frame.rs",
    "tunnel/resume/inbound.rs",
    "tunnel/resume/outbound.rs",
    "tunnel/ticket.rs",
    "trace/parent.rs",
    "tunnel/urgency.rs",
    "ssh/lines.rs",
    "ssh/quote.rs",
    "controller/auth/permissions.rs",
    "controller/cluster",
    "controller/scheduler",
    "controller/shares.rs",
    "metrics/names.rs",
    "metrics/page.rs",
    "worker/lease.rs",
    "worker/load/parse.rs",
    "worker/local_network/protocol.rs",
    "worker/plan.rs",
    "config/duration.rs",
    "config/join.rs",
    "bus/refusal.rs",
    "client/order.rs",
    "cli/completion/line.rs",
    "cli/cp/place.rs",
    "cli/cp/scripts.rs",
    "cli/field.rs",
    "cli/asked/instead.rs",
    "cli/asked/tips.rs",
    "cli/asked/typed.rs",
    "cli/output/table.rs",
    "cli/pairs.rs",
    "cli/rows",
    "cli/top/cursor.rs",
    "cli/top/keys.rs",
    "cli/top/over.rs",
    "cli/top/state",
    "cli/top/text.rs",
    "cli/top/view.rs",
    "cli/watch/changes.rs",
    "cli/watch/drawing.rs",
    "worker/runtime/qemu/args.rs",
    "worker/runtime/qemu/usernet.rs",
    "worker/runtime/prune.rs",
    "worker/runtime/said.rs",
    "worker/runtime/tart/args.rs",
    "worker/runtime/tart/names.rs",
    "worker/runtime/tart/parse.rs",
    "worker/runtime/synthetic/behaviour.rs",
    "worker/runtime/synthetic/parse.rs",
    "vnc/conversation.rs",
    "vnc/picture.rs",
    "vnc/protocol.rs",
    "vnc/security.rs",
];

/// What pure code does not contain.
const IMPURE: &[&str] = &[
    "tokio::",
    "async fn",
    ".await",
    "std::net",
    "std::fs",
    "std::process",
    "Instant::now",
    "SystemTime",
    "getrandom",
    "std::env",
    "heed::",
    "quinn::",
    "new_v4",
    "now_v7",
    "Clock::",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The code of a file without comments and without its unit tests, which may do as they need.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    text.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
}

/// First path segments after `crate::`, also within `use crate::{a, b}`.
fn named_modules(code: &str) -> BTreeSet<String> {
    let ident = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut named = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        if let Some(list) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut item = String::new();
            for c in list.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => {
                        named.insert(ident(item.trim()));
                        item.clear();
                        continue;
                    }
                    _ => {}
                }
                if depth == 0 {
                    item.push(c);
                }
            }
            named.insert(ident(item.trim()));
        } else {
            named.insert(ident(rest));
        }
    }
    named.remove("");
    named
}

#[test]
fn modules_name_only_what_lies_below_them() {
    let source = root().join("src");
    let mut wrong = Vec::new();
    for path in rust_files(&source) {
        let relative = path.strip_prefix(&source).unwrap();
        let module = relative.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        if matches!(module, "main" | "lib") {
            continue;
        }
        let Some((_, allowed)) = MAY_NAME.iter().find(|(name, _)| *name == module) else {
            wrong.push(format!(
                "{} belongs to module {module}, which the layer table does not know",
                relative.display()
            ));
            continue;
        };
        for named in named_modules(&code(&path)) {
            if named != module && !allowed.contains(&named.as_str()) {
                wrong.push(format!("{} names {named}, which {module} may not", relative.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn pure_files_are_pure() {
    let source = root().join("src");
    let mut wrong = Vec::new();
    for entry in PURE {
        let path = source.join(entry);
        let files = match (path.is_dir(), path.with_extension("rs")) {
            (true, _) => rust_files(&path),
            (false, file) => vec![file],
        };
        for file in files {
            assert!(file.exists(), "{} is in the list of pure files but does not exist", file.display());
            let code = code(&file);
            wrong.extend(
                IMPURE
                    .iter()
                    .filter(|token| code.contains(**token))
                    .map(|token| format!("{}: {token}", file.display())),
            );
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_opens_with_what_it_is() {
    let missing: Vec<_> = ["src", "tests"]
        .iter()
        .flat_map(|folder| rust_files(&root().join(folder)))
        .filter(|path| !fs::read_to_string(path).unwrap().starts_with("//!"))
        .collect();
    assert!(missing.is_empty(), "without a //! header: {missing:?}");
}

#[test]
fn tests_sleep_in_one_place_and_choose_no_port() {
    let mut wrong = Vec::new();
    for path in rust_files(&root().join("tests/all")) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = code(&path);
        if !matches!(name, "wait.rs" | "layers.rs") && text.contains("sleep(") {
            wrong.push(format!("{name} sleeps; wait for a condition with wait::until"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_check_sees_grouped_imports() {
    let named = named_modules("use crate::{bus::{client, message}, model::VmName};\nlet x = crate::worker::plan();");
    assert_eq!(named.into_iter().collect::<Vec<_>>(), ["bus", "model", "worker"]);
}
