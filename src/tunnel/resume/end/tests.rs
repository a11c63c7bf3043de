//! Two ends with a connection between them that is cut at any byte, and what each does when the other breaks the rules.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::super::FIRST_WINDOW;
use super::*;

/// Two ends and what is under way between them.
struct Pair {
    ends: [End; 2],
    /// Towards each end.
    wires: [BytesMut; 2],
    /// What each end has, and has not been given yet.
    partial: [BytesMut; 2],
    sent: [Vec<u8>; 2],
    got: [Vec<u8>; 2],
}

impl Pair {
    fn new() -> Self {
        let mut ends = [End::at_client(), End::at_guest()];
        ends.iter_mut().for_each(End::attach);
        let empty = || [BytesMut::new(), BytesMut::new()];
        Self { ends, wires: empty(), partial: empty(), sent: [Vec::new(), Vec::new()], got: [Vec::new(), Vec::new()] }
    }

    fn push(&mut self, at: usize, bytes: &[u8]) {
        let end = &mut self.ends[at];
        let bytes = &bytes[..bytes.len().min(end.room())];
        end.push(bytes);
        self.sent[at].extend_from_slice(bytes);
    }

    fn deliver(&mut self, at: usize, most: usize) {
        let end = &mut self.ends[at];
        let piece = end.front();
        let count = piece.len().min(most);
        self.got[at].extend_from_slice(&piece[..count]);
        end.deliver(count);
        if end.is_at_end() {
            end.close();
        }
    }

    /// Carries at most so many bytes from one end to the other.
    fn carry(&mut self, from: usize, most: usize) {
        let to = 1 - from;
        self.ends[from].fill(&mut self.wires[to]);
        let count = self.wires[to].len().min(most);
        let bytes = self.wires[to].split_to(count);
        self.partial[to].extend_from_slice(&bytes);
        self.ends[to].receive(&mut self.partial[to]).unwrap();
    }

    /// Everything under way is lost, and another connection is there.
    fn cut(&mut self) {
        for at in 0..2 {
            self.ends[at].detach();
            self.wires[at].clear();
            self.partial[at].clear();
        }
        self.ends.iter_mut().for_each(End::attach);
    }

    fn settle(&mut self) {
        for _ in 0..10_000 {
            for at in 0..2 {
                self.carry(at, usize::MAX);
                self.deliver(at, usize::MAX);
            }
            if self.ends.iter().all(|end| end.over().is_some()) {
                return;
            }
        }
        panic!("it never ends: {:?}", self.ends);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Push(usize, usize),
    Finish(usize),
    Deliver(usize, usize),
    Carry(usize, usize),
    Acknowledge(usize),
    Cut,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let at = 0..2usize;
    let small = prop_oneof![4 => 1..40usize, 1 => 1..50_000usize];
    let step = prop_oneof![
        6 => (at.clone(), small.clone()).prop_map(|(at, n)| Step::Push(at, n)),
        1 => at.clone().prop_map(Step::Finish),
        6 => (at.clone(), small.clone()).prop_map(|(at, n)| Step::Deliver(at, n)),
        12 => (at.clone(), small).prop_map(|(at, n)| Step::Carry(at, n)),
        2 => at.prop_map(Step::Acknowledge),
        2 => Just(Step::Cut),
    ];
    prop::collection::vec(step, 0..300)
}

fn noise(from: usize, length: usize) -> Vec<u8> {
    (from..from + length).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

proptest! {
    #[test]
    fn what_arrives_is_what_was_sent_wherever_the_connection_is_cut(steps in steps()) {
        let mut pair = Pair::new();
        for step in steps {
            match step {
                Step::Push(at, length) => {
                    let bytes = noise(pair.sent[at].len() + at * 7, length);
                    pair.push(at, &bytes);
                }
                Step::Finish(at) => pair.ends[at].finish(),
                Step::Deliver(at, most) => pair.deliver(at, most),
                Step::Carry(from, most) => pair.carry(from, most),
                Step::Acknowledge(at) => {
                    if pair.ends[at].owes_ack() {
                        pair.ends[at].acknowledge(&mut pair.wires[1 - at]);
                    }
                }
                Step::Cut => pair.cut(),
            }
            for (sent, got) in [(0, 1), (1, 0)] {
                prop_assert!(pair.sent[sent].starts_with(&pair.got[got]));
            }
        }
        pair.cut();
        pair.ends.iter_mut().for_each(End::finish);
        pair.settle();
        let over: Vec<_> = pair.ends.iter().map(End::over).collect();
        prop_assert_eq!(over, [Some(Over::Finished), Some(Over::Finished)]);
        prop_assert!(pair.sent[0] == pair.got[1] && pair.sent[1] == pair.got[0]);
    }
}

#[test]
fn nobody_waits_to_be_asked_at_the_first_attachment() {
    let mut pair = Pair::new();
    pair.push(1, b"SSH-2.0-guest");
    pair.carry(1, usize::MAX);
    pair.deliver(0, usize::MAX);
    assert_eq!(pair.got[0], b"SSH-2.0-guest");
}

#[test]
fn a_reader_that_reads_nothing_holds_the_sender_back_and_the_other_way_goes_on() {
    let mut pair = Pair::new();
    let mut taken = 0;
    loop {
        let room = pair.ends[0].room();
        pair.push(0, &noise(taken, room.min(100_000)));
        pair.carry(0, usize::MAX);
        pair.carry(1, usize::MAX);
        if room == 0 {
            break;
        }
        taken += room.min(100_000);
    }
    assert_eq!(taken, WINDOW as usize, "what is kept is all that is taken in");
    pair.push(1, b"back");
    pair.carry(1, usize::MAX);
    pair.deliver(0, usize::MAX);
    assert_eq!(pair.got[0], b"back");
    for end in &mut pair.ends {
        end.finish();
    }
    pair.settle();
    assert!(pair.got[1] == pair.sent[0]);
    assert_eq!(pair.ends[0].room(), 0, "it has finished");
}

#[test]
fn before_the_other_end_is_heard_little_is_under_way() {
    let mut end = End::at_client();
    end.attach();
    end.push(&noise(0, 500_000));
    let mut wire = BytesMut::new();
    let mut before = usize::MAX;
    while wire.len() != before {
        before = wire.len();
        end.fill(&mut wire);
        let mut more = BytesMut::new();
        end.fill(&mut more);
        wire.extend_from_slice(&more);
    }
    assert!(wire.len() > FIRST_WINDOW as usize && wire.len() < FIRST_WINDOW as usize + 1000, "{}", wire.len());
}

#[test]
fn a_broken_side_is_told_of_after_what_it_said_and_a_program_that_leaves_at_once() {
    let mut pair = Pair::new();
    pair.push(1, b"last words");
    pair.ends[1].fail(Reason::GuestReset);
    pair.carry(1, usize::MAX);
    assert_eq!(pair.ends[1].over(), Some(Over::Broken(Reason::GuestReset)));
    assert_eq!(pair.ends[0].over(), None, "it has something to hand on");
    pair.deliver(0, usize::MAX);
    assert_eq!(pair.got[0], b"last words");
    assert_eq!(pair.ends[0].over(), Some(Over::Reset(Reason::GuestReset)));

    let mut pair = Pair::new();
    pair.push(0, b"unimportant");
    pair.ends[0].abort(Reason::Aborted);
    pair.carry(0, usize::MAX);
    assert_eq!(pair.ends[1].over(), Some(Over::Reset(Reason::Aborted)));
}

#[test]
fn one_that_leaves_after_its_end_of_file_has_everything_delivered_first() {
    let mut pair = Pair::new();
    pair.push(0, b"upload");
    pair.ends[0].finish();
    pair.ends[0].leave();
    pair.push(1, b"never read");
    pair.carry(0, usize::MAX);
    pair.carry(1, usize::MAX);
    assert_eq!(pair.ends[0].over(), None);
    pair.deliver(1, usize::MAX);
    for at in [1, 0, 1] {
        pair.carry(at, usize::MAX);
    }
    assert_eq!(pair.got[1], b"upload");
    assert_eq!(pair.ends[0].over(), Some(Over::Broken(Reason::Closed)));
    assert_eq!(pair.ends[1].over(), Some(Over::Reset(Reason::Closed)));
}

#[test]
fn what_breaks_the_protocol_ends_the_session_with_a_reason() {
    let hello = Frame::Hello { received: 0, window: WINDOW };
    let data = |offset, bytes: &[u8]| Frame::Data { offset, bytes: bytes.into() };
    let cases: VecDeque<(Vec<Frame>, Violation)> = [
        (vec![data(0, b"x")], Violation::Order),
        (vec![hello.clone(), hello.clone()], Violation::Order),
        (vec![Frame::Hello { received: 3, window: 1 }], Violation::Hello { received: 3, from: 0, to: 0 }),
        (vec![hello.clone(), data(1, b"x")], Violation::Gap { offset: 1, expected: 0 }),
        (vec![hello.clone(), Frame::Ack { delivered: 1 }], Violation::Ack(1)),
        (vec![hello.clone(), Frame::Finish { offset: 5 }], Violation::Finish(5)),
        (vec![hello.clone(), Frame::Finish { offset: 0 }, data(0, b"x")], Violation::Finish(1)),
    ]
    .into();
    for (frames, expected) in cases {
        let mut end = End::at_guest();
        end.attach();
        let mut wire = BytesMut::new();
        frames.iter().for_each(|frame| frame.put(&mut wire));
        assert_eq!(end.receive(&mut wire), Err(expected));
        end.fill(&mut BytesMut::new());
        assert_eq!(end.over(), Some(Over::Broken(Reason::Protocol)));
    }
    let mut end = End::at_guest();
    end.attach();
    let mut wire = BytesMut::new();
    hello.put(&mut wire);
    let mut offset = 0;
    let refused = loop {
        data(offset, &[0; 16 << 10]).put(&mut wire);
        offset += 16 << 10;
        if let Err(refused) = end.receive(&mut wire) {
            break refused;
        }
    };
    assert_eq!((refused, offset), (Violation::Window, u64::from(WINDOW) + (16 << 10)));
}

#[test]
fn an_idle_end_holds_no_buffer() {
    let mut pair = Pair::new();
    for turn in 0..20 {
        let bytes = noise(turn, 60_000);
        pair.push(0, &bytes);
        for _ in 0..4 {
            pair.carry(0, usize::MAX);
            pair.deliver(1, usize::MAX);
            pair.carry(1, usize::MAX);
        }
    }
    pair.ends[1].acknowledge(&mut pair.wires[0]);
    pair.carry(1, usize::MAX);
    assert!(pair.ends[0].outbound.spare() <= 16 << 10 && pair.ends[1].inbound.spare() <= 16 << 10);
}
