//! Plays scripts against one server and collects what went wrong.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::StreamExt;

use super::peer::Peer;
use super::script::{Action, Case, Side, Step, bytes, parse};
use super::server::Server;
use super::setup::Setup;
use super::{cases, info, keys};
use crate::wait;

/// Scripts played side by side on one server; the tokens in their subjects keep them apart.
const AT_ONCE: usize = 8;
/// The same where each script has a server of its own.
const SERVERS_AT_ONCE: usize = 4;
/// How long connections of an earlier play may be in the way of the next.
const ROOM: Duration = Duration::from_secs(60);
/// Plays of each script with random cuts.
const CUT_PLAYS: u64 = 2;

/// Plays every case of `setup` against both servers; panics with all that differ.
pub async fn both(setup: Setup) {
    let cases: Vec<Case> = cases().into_iter().filter(|case| case.setup == setup).collect();
    assert!(!cases.is_empty());
    let ours = Server::start(Side::Orchard, setup).await.expect("ours always starts");
    let theirs = Server::start(Side::Nats, setup).await;
    let mut wrong = play_all(&ours, Side::Orchard, &cases).await;
    match theirs {
        Some(theirs) => {
            wrong.extend(info::compare(&ours, &theirs).await);
            wrong.extend(play_all(&theirs, Side::Nats, &cases).await);
        }
        None => eprintln!("SKIPPED: {} cases of {setup:?} against the real nats-server", cases.len()),
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

async fn play_all(server: &Server, side: Side, cases: &[Case]) -> Vec<String> {
    let seed = std::env::var("ORCHARD_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1u64);
    let only = std::env::var("ORCHARD_TEST_CASE").unwrap_or_default();
    // A server of its own is dear, and what such scripts are about are not bytes.
    let used_up = server.setup.is_used_up();
    let release = info::release(server).await;
    let wanted = |case: &&Case| {
        let old = side == Side::Nats && case.since > release;
        if old {
            eprintln!(
                "LEFT OUT: {:?} against nats-server {release:?}, which is older than {:?}",
                case.name, case.since
            );
        }
        !old && case.name.contains(&only)
    };
    let plays = cases.iter().filter(wanted).flat_map(|case| {
        (0..=if case.uncut || used_up { 0 } else { CUT_PLAYS }).map(move |number| async move {
            let cuts = (number > 0).then(|| Random::new(seed.wrapping_add(number), &case.name));
            let how =
                if number > 0 { format!("cut with seed {}", seed.wrapping_add(number)) } else { "in one piece".into() };
            let own = if used_up { Server::start(side, server.setup).await } else { None };
            let played = play(own.as_ref().unwrap_or(server), side, case, cuts).await;
            played.err().map(|wrong| format!("{side:?}, {:?} ({how}): {wrong}", case.name))
        })
    });
    let at_once = match server.setup {
        setup if setup.is_crowded() => 1,
        setup if setup.is_used_up() => SERVERS_AT_ONCE,
        _ => AT_ONCE,
    };
    futures_util::stream::iter(plays).buffer_unordered(at_once).filter_map(|wrong| async { wrong }).collect().await
}

/// A token that no other script has.
fn token() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    (0..4).map(|place| char::from(b'a' + (count / 26u32.pow(place) % 26) as u8)).collect()
}

async fn play(server: &Server, side: Side, case: &Case, cuts: Option<Random>) -> Result<(), String> {
    if !server.setup.is_crowded() {
        return play_once(server, side, case, cuts).await;
    }
    // Connections of the play before may still count.
    wait::until(&case.name, ROOM, || play_once(server, side, case, cuts)).await;
    Ok(())
}

async fn play_once(server: &Server, side: Side, case: &Case, mut cuts: Option<Random>) -> Result<(), String> {
    let token = token();
    let mut peers: BTreeMap<char, Peer> = BTreeMap::new();
    let mut steps =
        parse(&case.script)?.into_iter().filter(|step| step.only.is_none_or(|only| only == side)).peekable();
    let mut changes = Vec::new();
    while let Some(Step { who, action, .. }) = steps.next() {
        if let Action::Change(change) = action {
            changes.extend(server.change(change).await);
            continue;
        }
        for name in &who {
            let at = |wrong: String| format!("{name} {action:?}: {wrong}");
            match &action {
                Action::First(identity) => {
                    peers.insert(*name, Peer::first(server.port, *identity).await.map_err(at)?);
                }
                Action::Mute => {
                    peers.insert(*name, Peer::mute(server.port).await.map_err(at)?);
                }
                Action::Refused => Peer::refused(server.port).await.map_err(at)?,
                _ if peers.contains_key(name) => {}
                _ => {
                    peers.insert(*name, Peer::connect(server.port).await.map_err(at)?);
                }
            }
        }
        if matches!(action, Action::First(_) | Action::Mute | Action::Refused) {
            continue;
        }
        let name = who[0];
        let peer = peers.get_mut(&name).unwrap();
        let nonce = peer.info["nonce"].as_str().unwrap_or_default().to_owned();
        let expand = |text: &str| bytes(text, &token, |what| keys::fill(what, &nonce));
        let at = |wrong: String| format!("{name} {action:?}: {wrong}");
        match &action {
            Action::Send(text) => match &mut cuts {
                None => peer.send(&expand(text), |all| all).await,
                Some(random) => peer.send(&expand(text), |all| random.piece(all)).await,
            },
            Action::Read(text) => peer.read(&expand(text)).await.map_err(at)?,
            Action::ReadInAnyOrder(text) => {
                let mut frames = vec![expand(text)];
                while let Some(next) = steps.next_if(|step| step.who == who) {
                    match next.action {
                        Action::ReadInAnyOrder(text) => frames.push(expand(&text)),
                        _ => return Err("after frames in any order another peer must come".into()),
                    }
                }
                peer.read_in_any_order(frames).await.map_err(at)?;
            }
            Action::Share(total, text) => {
                let frame = expand(text);
                let mut counts = BTreeMap::new();
                for name in &who {
                    let count = peers.get_mut(name).unwrap().count(&frame).await;
                    counts.insert(*name, count.map_err(|wrong| format!("{name} {action:?}: {wrong}"))?);
                }
                if counts.values().sum::<usize>() != *total || counts.values().any(|count| *count == 0) {
                    return Err(format!("{action:?}: shared as {counts:?}"));
                }
            }
            Action::Info(wanted) => info::check(&peer.info, wanted).map_err(at)?,
            Action::Sync => peer.sync().await.map_err(at)?,
            Action::Tls(identity) => {
                let upgraded = peers.remove(&name).unwrap().upgrade(*identity).await.map_err(at)?;
                peers.insert(name, upgraded);
            }
            Action::Alert(alert) => {
                peer.alerted(alert).await.map_err(at)?;
                peers.remove(&name);
            }
            Action::First(_) | Action::Mute | Action::Refused | Action::Change(_) => {} // done above
            Action::Ends => peer.end().await,
            Action::Leaves => drop(peers.remove(&name)),
            Action::Closed => {
                peer.closed().await.map_err(at)?;
                peers.remove(&name);
            }
        }
    }
    for (name, mut peer) in peers {
        peer.sync().await.map_err(|wrong| format!("{name} at the end: {wrong}"))?;
    }
    Ok(())
}

/// Where to cut: the same for the same seed and case.
#[derive(Debug, Clone, Copy)]
struct Random(u64);

impl Random {
    fn new(seed: u64, name: &str) -> Self {
        Self(name.bytes().fold(seed, |sum, b| sum.wrapping_mul(0x100_0000_01b3).wrapping_add(u64::from(b))) | 1)
    }

    fn piece(&mut self, all: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        // Mostly a few bytes, so that every operation is cut; long bodies in larger pieces.
        let most = if all > 512 { 512 } else { 9 };
        1 + (self.0 >> 33) as usize % most
    }
}
