//! Any bytes through parser and session, for users of every kind: what the session grants is what the rules say, and its
//! subscriptions are those of a simple model.
#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use orchard_fuzz::auth::User;
use orchard_fuzz::permission::{Permissions, Rules, Subscribe};
use orchard_fuzz::protocol::parse::{Bounds, Parser};
use orchard_fuzz::protocol::{Fault, Op, encode};
use orchard_fuzz::session::{Held, Session, Step};
use orchard_fuzz::{Choices, subject};

const BOUNDS: Bounds = Bounds { control_line: 128, payload: 64 };
const MAX_SUBSCRIPTIONS: usize = 3;

#[derive(Debug, Clone, PartialEq)]
struct Sub {
    subject: Vec<u8>,
    queue: Option<Vec<u8>>,
}

impl Held for Sub {
    fn subject(&self) -> &[u8] {
        &self.subject
    }

    fn queue(&self) -> Option<&[u8]> {
        self.queue.as_deref()
    }
}

fn user(kind: usize) -> User {
    let permissions = match kind {
        0 => Permissions::default(),
        1 => Permissions {
            publish: Rules::allow(["a.>", "b"]).deny(["a.b"]),
            subscribe: Rules::allow(["a.>", "q.* w"]).deny(["a.b.>"]),
            ..Permissions::default()
        },
        2 => Permissions { publish: Rules::default().deny([">"]), ..Permissions::default() },
        _ => Permissions { subscribe: Rules::allow(Vec::<String>::new()), ..Permissions::default() },
    };
    User { name: format!("user {kind}"), permissions }
}

fuzz_target!(|data: &[u8]| {
    let mut choices = Choices(data);
    let auth_required = choices.below(2) == 1;
    let mut kind = choices.below(4);
    let mut session: Session<Sub> = Session::new(auth_required, MAX_SUBSCRIPTIONS);
    let mut model: HashMap<Vec<u8>, Sub> = HashMap::new();
    let (mut parser, mut input, mut known) = (Parser::default(), choices.0, !auth_required);
    while let Ok(Some((op, used))) = parser.next(input, &BOUNDS) {
        input = &input[used..];
        let op_before = op.clone();
        assert_eq!(session.awaits_connect(), !known);
        match session.handle(op) {
            Step::Authenticate(options) => {
                assert!(matches!(op_before, Op::Connect(_)));
                assert!(!options.no_responders || options.headers);
                let user = user(kind);
                kind = (kind + 1) % 4;
                known = true;
                let may = |held: &Sub| user.permissions.may_subscribe(&held.subject, held.queue.as_deref());
                model.retain(|_, held| may(held) != Subscribe::Denied);
                session.connected(*options.clone(), user);
                assert_eq!(session.options(), &*options);
                // What became filtered may go or stay; what is denied must be gone.
                model.retain(|sid, _| session.subscription(sid).is_some());
            }
            _ if !known && !matches!(op_before, Op::Connect(_)) => {}
            Step::Publish(message) => {
                assert!(message.header_size.is_none() || session.options().headers);
                let verdict = session.judge(message.subject);
                assert!(!verdict.literal || subject::is_valid(message.subject));
            }
            Step::Subscribe(wanted) => {
                assert!(known && subject::is_valid(wanted.subject));
                assert!(model.len() < MAX_SUBSCRIPTIONS && !model.contains_key(wanted.sid));
                let held = Sub { subject: wanted.subject.to_vec(), queue: wanted.queue.map(<[u8]>::to_vec) };
                session.subscribed(wanted.sid, held.clone());
                model.insert(wanted.sid.to_vec(), held);
            }
            Step::Unsubscribe { sid, .. } => {
                assert_eq!(session.unsubscribe(sid), model.remove(sid));
            }
            Step::Refuse(fault) => {
                let mut told = Vec::new();
                encode::error(&mut told, &fault);
                assert_eq!(fault.is_told(), told.ends_with(b"'\r\n"));
                assert_eq!(told.iter().filter(|b| **b == b'\n').count(), usize::from(fault.is_told()), "one line");
                if fault == Fault::Subscriptions {
                    assert_eq!(model.len(), MAX_SUBSCRIPTIONS);
                }
                if fault.closes() {
                    break;
                }
            }
            Step::Accepted => {
                let Op::Subscribe { sid, .. } = op_before else { panic!("{op_before:?}") };
                assert!(model.contains_key(sid));
            }
            Step::Pong => assert_eq!(op_before, Op::Ping),
            Step::Nothing => assert!(matches!(op_before, Op::Pong | Op::Noise)),
        }
        assert!(known || session.awaits_connect(), "nobody is let in unasked");
        for (sid, held) in &model {
            assert_eq!(session.subscription(sid), Some(held));
        }
    }
    assert_eq!(session.take_subscriptions().len(), model.len());
});
