//! What keys, lists and events make of the state, and what is done about them.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::*;
use crate::cli::list::tests::{vm, worker};
use crate::model::Timestamp;
use crate::model::error::ErrorCode;
use crate::model::event::EventObject;
use crate::model::vm::VmStatus;

fn at(ms: u64) -> Now {
    Now { wall: Timestamp::from_millis(1_000_000 + ms as i64), mono: Duration::from_millis(ms) }
}

fn start() -> State {
    State::new("admin".into(), (80, 24), at(0))
}

fn listed(names: &[&str]) -> Event {
    let vms = names.iter().map(|name| vm(name, VmStatus::Running)).collect();
    Event::Listed(Ok(Snapshot { vms, workers: vec![worker("w")] }))
}

fn happened(number: u64, name: &str) -> Event {
    let object = EventObject::Vm { name: name.parse().unwrap(), uid: vm(name, VmStatus::Pending).uid, attempt: 0 };
    Event::Happened(vec![event::Event {
        number,
        time: Timestamp::from_millis(1_000_000),
        kind: EventType::Created,
        object,
        message: String::new(),
        worker: None,
        stream: None,
        said_at: None,
    }])
}

/// Types; `\t`, `\r` and `\u{1b}` are keys of their own, as on a terminal. Yields what is done about the last.
fn press(state: &mut State, keys: &str) -> Vec<Action> {
    let now = state.now;
    let mut done = Vec::new();
    for c in keys.chars() {
        let code = match c {
            '\t' => KeyCode::Tab,
            '\r' => KeyCode::Enter,
            '\u{1b}' => KeyCode::Esc,
            c => KeyCode::Char(c),
        };
        done = state.on(Event::Key(KeyEvent::new(code, KeyModifiers::NONE)), now);
    }
    done
}

/// A state that has just been told of these VMs.
fn with(names: &[&str]) -> State {
    let mut state = start();
    assert_eq!(state.on(Event::Tick, at(0)), [Action::Refresh]);
    state.on(listed(names), at(10));
    state
}

fn names(state: &State) -> Vec<&str> {
    state.vms().0.iter().map(|vm| vm.name.as_str()).collect()
}

fn unavailable() -> ApiError {
    ApiError::new(ErrorCode::Unavailable, "nobody listens".to_owned())
}

#[test]
fn it_asks_at_once_then_every_period_and_soon_after_an_event_but_never_twice_at_a_time() {
    let mut state = start();
    assert_eq!(state.on(Event::Tick, at(0)), [Action::Refresh]);
    assert_eq!(state.on(Event::Tick, at(9_000)), [], "it has not been answered");
    assert_eq!(state.on(listed(&[]), at(9_010)), []);
    let took = 9_010 * u64::from(SHARE);
    assert_eq!(state.on(Event::Tick, at(9_010 + took - 1)), [], "a slow controller is asked less");
    assert_eq!(state.on(Event::Tick, at(9_010 + took)), [Action::Refresh]);
    let mut state = with(&[]);
    assert_eq!(state.on(happened(1, "a"), at(20)), []);
    assert_eq!(state.on(Event::Tick, at(510)), [Action::Refresh]);
    state.on(listed(&[]), at(520));
    assert_eq!(state.on(Event::Tick, at(3_519)), []);
    assert_eq!(state.on(Event::Tick, at(3_520)), [Action::Refresh]);
}

#[test]
fn while_the_controller_is_away_what_was_known_stays_and_it_is_asked_every_second() {
    let mut state = with(&["a"]);
    state.on(Event::Away(unavailable()), at(100));
    assert_eq!(state.link, Link::Away(Duration::from_millis(100), "nobody listens".into()));
    assert_eq!(state.on(Event::Tick, at(1_010)), [Action::Refresh]);
    state.on(Event::Listed(Err(unavailable())), at(1_500));
    assert_eq!(
        (names(&state), state.link.clone()),
        (vec!["a"], Link::Away(Duration::from_millis(100), "nobody listens".into()))
    );
    assert_eq!(state.on(Event::Tick, at(5_000)), [Action::Refresh]);
    state.on(listed(&["a", "b"]), at(5_010));
    assert_eq!((names(&state), &state.link), (vec!["a", "b"], &Link::Live));
}

#[test]
fn a_refusal_ends_it() {
    let refusal = ApiError::new(ErrorCode::Forbidden, "no".to_owned());
    assert_eq!(start().on(Event::Listed(Err(refusal.clone())), at(0)).first(), Some(&Action::Fail(refusal.clone())));
    assert_eq!(start().on(Event::Away(refusal.clone()), at(0)).first(), Some(&Action::Fail(refusal)));
}

#[test]
fn a_vm_is_deleted_once_that_is_confirmed_and_only_the_one_that_was_meant() {
    let mut state = with(&["a", "b"]);
    assert_eq!(press(&mut state, "jx"), []);
    assert!(matches!(&state.over, Some(Over::Confirm(name, _)) if name.as_str() == "b"));
    // Neither Enter nor any other key is a yes.
    assert_eq!(press(&mut state, "\rx q"), []);
    assert!(state.over.is_none(), "q is a no");
    assert_eq!(press(&mut state, "xy"), [Action::Delete("b".parse().unwrap())]);
    press(&mut state, "x");
    let mut other = vm("b", VmStatus::Running);
    other.uid = "00000000-0000-0000-0000-000000000001".parse().unwrap();
    state.on(Event::Listed(Ok(Snapshot { vms: vec![other], workers: Vec::new() })), at(20));
    assert_eq!(press(&mut state, "y"), []);
    assert_eq!(state.notice().unwrap().text, "VM b was made anew meanwhile, and is not deleted");
    // What is told goes by itself.
    state.on(Event::Tick, at(7_000));
    assert_eq!(state.notice(), None);
}

#[test]
fn keys_are_about_what_is_selected_in_the_pane_that_has_them() {
    let mut state = with(&["a", "b"]);
    let (a, b) = (Place::Vm("a".parse().unwrap()), Place::Vm("b".parse().unwrap()));
    assert_eq!(press(&mut state, "s"), [Action::Ssh(a.clone())]);
    assert_eq!(press(&mut state, "js"), [Action::Ssh(b)]);
    state.on(happened(1, "a"), at(20));
    assert_eq!(press(&mut state, "\ts"), [Action::Ssh(a)], "the object of the newest event");
    let w = Place::Worker("w".parse().unwrap());
    assert_eq!(press(&mut state, "\ts"), [Action::Ssh(w.clone())]);
    assert_eq!(press(&mut state, "x"), []);
    assert!(state.notice().unwrap().text.contains("`orchard delete worker w`"), "{:?}", state.notice());
    assert_eq!(press(&mut state, "l"), []);
    assert_eq!(press(&mut state, "d"), [Action::Describe(1, w)]);
}

#[test]
fn a_text_takes_only_its_own_lines_and_is_closed_before_all_ends() {
    let mut state = with(&["a"]);
    let uid = vm("a", VmStatus::Running).uid;
    assert_eq!(press(&mut state, "l"), [Action::Follow(1, uid)]);
    assert_eq!(press(&mut state, "q"), [Action::StopReading]);
    assert_eq!(press(&mut state, "l"), [Action::Follow(2, uid)]);
    state.on(Event::Lines(1, vec!["late".into()]), at(20));
    state.on(Event::Lines(2, vec!["now".into()]), at(20));
    let Some(Over::Text(text)) = &state.over else { panic!("{:?}", state.over) };
    assert_eq!(text.seen(), ["now"]);
    press(&mut state, "\u{1b}");
    assert_eq!(press(&mut state, "q"), [Action::Quit]);
}

#[test]
fn a_filter_holds_back_while_it_is_typed_and_goes_with_escape() {
    let mut state = with(&["build-1", "build-2", "test-1"]);
    press(&mut state, "jj/Build");
    assert_eq!(names(&state), ["build-1", "build-2"]);
    press(&mut state, "-2\r");
    assert_eq!(names(&state), ["build-2"]);
    assert_eq!(press(&mut state, "s"), [Action::Ssh(Place::Vm("build-2".parse().unwrap()))]);
    press(&mut state, "/q\u{1b}");
    assert_eq!(names(&state), ["build-2"], "the filter from before");
    press(&mut state, "\u{1b}");
    assert_eq!(names(&state).len(), 3);
}

#[test]
fn ctrl_c_ends_it_wherever_it_is_pressed() {
    let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    for keys in ["", "?", "/", "x", "d"] {
        let mut state = with(&["a"]);
        press(&mut state, keys);
        assert_eq!(state.on(Event::Key(interrupt), at(20)), [Action::Quit], "{keys:?}");
    }
}

#[test]
fn lines_of_scripts_are_no_events_to_be_shown_and_old_events_go() {
    let mut state = with(&[]);
    for number in 0..=MAX_FEED as u64 {
        state.on(happened(number, "a"), at(20));
    }
    let (events, row) = state.events();
    assert_eq!((events.len(), events[0].number, row), (MAX_FEED, 1, Some(MAX_FEED - 1)));
}
