//! What is on the screen, compared line by line.

use std::time::Duration;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::Color;

use super::state::{Event, Notice, Snapshot, State};
use super::view::{self, Look};
use crate::cli::list::tests::{vm, worker};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::event::{self, EventObject, EventType};
use crate::model::vm::{Vm, VmStatus};
use crate::model::worker::{WorkerState, WorkerView};
use crate::model::{Now, Timestamp};

/// 100 000 s after the beginning of time, where all of these VMs were made, or so much later.
fn at(seconds: u64) -> Now {
    Now { wall: Timestamp::from_millis((100_000 + seconds as i64) * 1000), mono: Duration::from_secs(seconds) }
}

fn rendered(state: &State, columns: u16, rows: u16, look: Look) -> TestBackend {
    let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
    terminal.draw(|frame| view::draw(frame, state, look)).unwrap();
    terminal.backend().clone()
}

/// The lines of the screen without blanks at their ends.
fn screen(state: &State, columns: u16, rows: u16) -> Vec<String> {
    let backend = rendered(state, columns, rows, Look { colours: true });
    let cells: Vec<&str> = backend.buffer().content().iter().map(|cell| cell.symbol()).collect();
    cells.chunks(columns.into()).map(|line| line.concat().trim_end().to_owned()).collect()
}

fn placed(name: &str, status: VmStatus, ready: bool, message: &str) -> Vm {
    let mut vm = vm(name, status);
    vm.ready = ready;
    vm.created_at = Timestamp::from_millis(100_000 * 1000 - 300_000);
    vm.worker = (status == VmStatus::Running).then(|| "mini-1".parse().unwrap());
    vm.status_message = message.into();
    vm
}

fn happened(number: u64, kind: EventType, name: &str, message: &str) -> event::Event {
    let object = EventObject::Vm { name: name.parse().unwrap(), uid: vm(name, VmStatus::Pending).uid, attempt: 0 };
    event::Event {
        number,
        time: Timestamp::from_millis(100_000 * 1000 - 7_000),
        kind,
        object,
        message: message.into(),
        worker: None,
        stream: None,
        said_at: None,
    }
}

/// A cluster with a bit of everything.
fn cluster(columns: u16, rows: u16) -> State {
    let mut state = State::new("admin at tls://ctl:6120".into(), (columns, rows), at(0));
    let lost = WorkerView { state: WorkerState::Unseen, load: None, vms: 0, ..worker("mini-2") };
    let vms = vec![
        placed("build-1", VmStatus::Running, true, "ready"),
        placed("build-2", VmStatus::Pending, false, "waiting for a worker: of 2 none fits"),
        placed("odd", VmStatus::Failed, false, "no\u{1b}[2J image"),
    ];
    state.on(Event::Tick, at(0));
    state.on(Event::Listed(Ok(Snapshot { vms, workers: vec![worker("mini-1"), lost] })), at(0));
    let events = vec![
        happened(1, EventType::Created, "build-1", "image tiny"),
        happened(2, EventType::Failed, "odd", "no image"),
    ];
    state.on(Event::Happened(events), at(0));
    state
}

fn press(state: &mut State, keys: &str) {
    for c in keys.chars() {
        let code = if c == '\t' { KeyCode::Tab } else { KeyCode::Char(c) };
        state.on(Event::Key(KeyEvent::new(code, KeyModifiers::NONE)), at(0));
    }
}

#[test]
fn a_cluster_is_seen_at_a_glance() {
    let seen = screen(&cluster(90, 22), 90, 22);
    let expected = r#"
orchard top  admin at tls://ctl:6120                                                  live
┌ Workers 2, 1 online ───────────────────────────────────────────────────────────────────┐
│  Name                 State               VMs CPU           Memory        Disk         │
│  mini-1               online                2 ███░░░░░  37% ██░░░░░░  26% █████░░░  60%│
│  mini-2               unseen                0             -             -             -│
└────────────────────────────────────────────────────────────────────────────────────────┘
┌ VMs 3, 1 running, 1 pending, 1 failed ─────────────────────────────────────────────────┐
│  Name     State      Age Worker Message                                                │
│> build-1  ready       5m mini-1 ready                                                  │
│  build-2  pending     5m        waiting for a worker: of 2 none fits                   │
│  odd      failed      5m        no image                                               │
│                                                                                        │
│                                                                                        │
│                                                                                        │
│                                                                                        │
└────────────────────────────────────────────────────────────────────────────────────────┘
┌ Events ────────────────────────────────────────────────────────────────────────────────┐
│    7s vm/build-1 created    image tiny                                                 │
│    7s vm/odd     failed     no image                                                   │
│                                                                                        │
└────────────────────────────────────────────────────────────────────────────────────────┘
Tab pane  d describe  l logs  s ssh  x delete  / filter  ? help  q quit
"#;
    assert_eq!(seen.join("\n"), expected.trim_start_matches('\n').trim_end(), "\n{}", seen.join("\n"));
}

#[test]
fn the_first_line_says_whether_all_this_is_true() {
    let mut state = State::new("admin at tls://ctl:6120".into(), (60, 14), at(0));
    let first = |state: &State| screen(state, 60, 14)[0].clone();
    assert_eq!(first(&state), "orchard top  admin at tls://ctl:6120              connecting");
    state.on(Event::Listed(Ok(Snapshot::default())), at(0));
    assert_eq!(first(&state), "orchard top  admin at tls://ctl:6120                    live");
    state.on(Event::Away(ApiError::new(ErrorCode::Unavailable, "nobody listens there".to_owned())), at(1));
    state.on(Event::Tick, at(66));
    assert_eq!(first(&state), "orchard top  admin at tls://ctl:6120   reconnecting for 1m5s");
    assert_eq!(screen(&state, 60, 14)[13], "nobody listens there");
}

#[test]
fn a_question_lies_over_the_panes_and_an_answer_in_the_last_line() {
    let mut state = cluster(80, 20);
    press(&mut state, "x");
    let seen = screen(&state, 80, 20).join("\n");
    assert!(seen.contains("┌ Delete ─") && seen.contains("│ Delete VM build-1 and its disk?"), "{seen}");
    assert!(seen.contains("│ y yes   n no"), "{seen}");
    press(&mut state, "y");
    state.on(Event::Told(Notice { text: "VM build-1 is deleted".into(), bad: false }), at(0));
    assert_eq!(screen(&state, 80, 20)[19], "VM build-1 is deleted");
}

#[test]
fn a_text_takes_the_whole_screen_but_for_the_first_line_and_the_last() {
    let mut state = cluster(60, 14);
    press(&mut state, "d");
    state.on(Event::Lines(1, (1..=20).map(|n| format!("line {n}")).collect()), at(0));
    press(&mut state, "j");
    let seen = screen(&state, 60, 14);
    assert!(seen[1].starts_with("┌ VM build-1 ─"), "{seen:?}");
    assert!(seen[2].starts_with("│ line 2 ") && seen[11].starts_with("│ line 11 "), "{seen:?}");
    assert_eq!(seen[13], "↑ ↓ PgUp PgDn scroll  Esc back");
}

#[test]
fn help_and_the_filter_are_shown_while_they_have_the_keys() {
    let mut state = cluster(80, 24);
    press(&mut state, "?");
    let seen = screen(&state, 80, 24).join("\n");
    assert!(seen.contains("│ x         delete the VM, once confirmed"), "{seen}");
    press(&mut state, "x/odd");
    let seen = screen(&state, 80, 24);
    assert_eq!(seen[23], "/odd▏");
    assert!(seen.join("\n").contains(" VMs 1 of 3, 0 running, 1 failed "), "{seen:?}");
}

#[test]
fn of_long_lists_the_part_around_the_cursor_is_seen() {
    let mut state = State::new("admin".into(), (60, 20), at(0));
    let vms = (0..500).map(|n| placed(&format!("vm-{n:03}"), VmStatus::Running, true, "")).collect();
    state.on(Event::Listed(Ok(Snapshot { vms, workers: Vec::new() })), at(0));
    press(&mut state, "G");
    let seen = screen(&state, 60, 20).join("\n");
    assert!(seen.contains("│> vm-499") && !seen.contains("vm-400"), "{seen}");
    press(&mut state, "g");
    assert!(screen(&state, 60, 20).join("\n").contains("│> vm-000"));
}

#[test]
fn too_small_a_terminal_is_told_what_would_do() {
    assert_eq!(screen(&cluster(30, 5), 30, 5)[0], "30x5 is too small: 50x14 will");
    for (columns, rows) in [(1, 1), (50, 14), (51, 15), (300, 100)] {
        screen(&cluster(columns, rows), columns, rows);
    }
}

#[test]
fn without_colours_there_are_none() {
    let mut state = cluster(80, 24);
    press(&mut state, "\t");
    let backend = rendered(&state, 80, 24, Look { colours: false });
    assert!(backend.buffer().content().iter().all(|cell| (cell.fg, cell.bg) == (Color::Reset, Color::Reset)));
}
