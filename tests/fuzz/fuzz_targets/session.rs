//! Any bytes through parser and session, for users of every kind: what the session grants is what the rules say, what is
//! published passes when a model of the rules as naive as can be lets it, and subscriptions are those of a simple model.
#![no_main]

use std::collections::HashMap;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use orchard_fuzz::auth::User;
use orchard_fuzz::permission::{Permissions, Responses, Rules, Subscribe};
use orchard_fuzz::protocol::parse::{Bounds, Parser};
use orchard_fuzz::protocol::{Fault, Op, Publish, encode};
use orchard_fuzz::replies::Replies;
use orchard_fuzz::session::{Access, Held, Session, Step};
use orchard_fuzz::{Choices, naive_match, naive_rules, subject};

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

/// Kinds of users; the last has rules of the fuzzer's choice.
const KINDS: usize = 7;
/// Between two operations.
const STEP: Duration = Duration::from_secs(1);

fn user(kind: usize, choices: &mut Choices<'_>) -> User {
    let responses = |max, seconds: Option<u64>| Some(Responses { max, expires: seconds.map(Duration::from_secs) });
    let permissions = match kind {
        0 => Permissions::default(),
        1 => Permissions {
            publish: Rules::allow(["a.>", "b"]).deny(["a.b"]),
            subscribe: Rules::allow(["a.>", "q.* w"]).deny(["a.b.>"]),
            ..Permissions::default()
        },
        2 => Permissions { publish: Rules::default().deny([">"]), ..Permissions::default() },
        3 => Permissions { subscribe: Rules::allow(Vec::<String>::new()), ..Permissions::default() },
        4 => Permissions { allow_responses: responses(Some(2), Some(3)), ..Permissions::default() },
        5 => Permissions { publish: Rules::default().deny(["a.*", "*.b.>"]), ..Permissions::default() },
        _ => Permissions {
            publish: choices.rules(),
            subscribe: choices.rules(),
            allow_responses: [None, responses(None, None), responses(Some(1), None)][choices.below(3)],
        },
    };
    User { name: format!("user {kind}"), permissions }
}

/// For how many a subscription counts: one, and one for each 16 tokens or 256 bytes.
fn shares(sid: &[u8], subject: &[u8], queue: Option<&[u8]>) -> usize {
    let bytes = sid.len() + subject.len() + queue.map_or(0, <[u8]>::len);
    1 + (subject.split(|byte| *byte == b'.').count() / 16).max(bytes / 256)
}

/// Who may publish what, by the definition: the rules, and besides them what was asked, so often and for so long.
#[derive(Default)]
struct Publishing {
    permissions: Permissions,
    /// Reply subject, since when, and messages sent there.
    asked: HashMap<Vec<u8>, (Instant, u32)>,
}

impl Publishing {
    fn allows(&mut self, bytes: &[u8], now: Instant) -> bool {
        let Permissions { publish, allow_responses, .. } = &self.permissions;
        let silent = publish.allow.is_none() && allow_responses.is_some();
        if !silent && naive_rules(publish, &String::from_utf8_lossy(bytes)) {
            return true;
        }
        let (Some(bounds), Some((since, sent))) = (allow_responses, self.asked.get_mut(bytes)) else { return false };
        *sent += 1;
        let allowed =
            bounds.max.is_none_or(|max| *sent <= max) && bounds.expires.is_none_or(|limit| now - *since <= limit);
        if !allowed {
            self.asked.remove(bytes); // whoever was refused once must be asked again
        }
        allowed
    }
}

/// Publishes as the connection does: asks the session, and where it says so whether this is an answer.
fn publish(session: &Session<Sub>, replies: &mut Replies, message: &Publish<'_>, now: Instant) -> bool {
    assert!(message.header_size.is_none() || session.options().headers);
    let verdict = session.judge(message.subject);
    let wild = |token: &[u8]| token.is_empty() || matches!(token, b"*" | b">");
    assert_eq!(verdict.literal, !message.subject.split(|byte| *byte == b'.').any(wild));
    let bounds = session.user().and_then(|user| user.permissions.allow_responses);
    match verdict.access {
        Access::Granted => true,
        Access::AsAnswer => bounds.is_some_and(|bounds| replies.spend(message.subject, &bounds, now)),
        Access::Denied => false,
    }
}

fuzz_target!(|data: &[u8]| {
    let mut choices = Choices(data);
    let auth_required = choices.below(2) == 1;
    let mut kind = choices.below(KINDS);
    let drawn = (kind == KINDS - 1).then(|| user(kind, &mut choices));
    let mut session: Session<Sub> = Session::new(auth_required, MAX_SUBSCRIPTIONS);
    let mut model: HashMap<Vec<u8>, Sub> = HashMap::new();
    let (mut publishing, mut replies, mut now) = (Publishing::default(), Replies::default(), Instant::now());
    let (mut parser, mut input, mut known) = (Parser::default(), choices.0, !auth_required);
    while let Ok(Some((op, used))) = parser.next(input, &BOUNDS) {
        input = &input[used..];
        let op_before = op.clone();
        now += STEP;
        assert_eq!(session.awaits_connect(), !known);
        match session.handle(op) {
            Step::Authenticate(options) => {
                assert!(matches!(op_before, Op::Connect(_)));
                assert!(!options.no_responders || options.headers);
                let user = match &drawn {
                    Some(drawn) if kind == KINDS - 1 => drawn.clone(),
                    _ => user(kind, &mut Choices(&[])),
                };
                kind = (kind + 1) % KINDS;
                known = true;
                publishing.permissions = user.permissions.clone();
                if user.permissions.allow_responses.is_none() {
                    publishing.asked.clear();
                    replies.clear();
                }
                let may = |held: &Sub| user.permissions.may_subscribe(&held.subject, held.queue.as_deref());
                model.retain(|_, held| may(held) != Subscribe::Denied);
                session.connected(*options.clone(), user);
                assert_eq!(session.options(), &*options);
                // What became filtered may go or stay; what is denied must be gone.
                model.retain(|sid, _| session.subscription(sid).is_some());
            }
            _ if !known && !matches!(op_before, Op::Connect(_)) => {}
            Step::Publish(message) => {
                let passed = publish(&session, &mut replies, &message, now);
                let (expected, permissions) = (publishing.allows(message.subject, now), &publishing.permissions);
                assert_eq!(passed, expected, "{} under {permissions:?}", message.subject.escape_ascii());
                // What it hears itself asks it for an answer.
                let text = String::from_utf8_lossy(message.subject);
                let hears = |held: &Sub| naive_match(&String::from_utf8_lossy(&held.subject), &text);
                if let Some(reply) = message.reply
                    && passed
                    && permissions.allow_responses.is_some()
                    && model.values().any(hears)
                {
                    replies.note(reply, now);
                    publishing.asked.insert(reply.to_vec(), (now, 0));
                }
            }
            Step::Subscribe(wanted) => {
                assert!(known && subject::is_valid(wanted.subject));
                assert!(model.len() < MAX_SUBSCRIPTIONS && !model.contains_key(wanted.sid));
                let held = model.iter().map(|(sid, held)| shares(sid, &held.subject, held.queue.as_deref()));
                assert!(held.sum::<usize>() + shares(wanted.sid, wanted.subject, wanted.queue) <= MAX_SUBSCRIPTIONS);
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
                    let Op::Subscribe { sid, subject, queue } = op_before else { panic!("{op_before:?}") };
                    let held = model.iter().map(|(sid, held)| shares(sid, &held.subject, held.queue.as_deref()));
                    assert!(held.sum::<usize>() + shares(sid, subject, queue) > MAX_SUBSCRIPTIONS);
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
