//! The worker's lease: until when the controller certainly starts none of this worker's VMs elsewhere. Pure; `guard` keeps
//! the clock, the file and the consequences.
//!
//! The lease is counted from the moment at which the worker *sent* the last message that renewed it. The controller counts
//! from the moment at which it *got* that message, which is later, so the worker's lease is over first, whatever the answer's
//! way took. Both count with clocks that nobody sets; the worker's also goes on while its machine sleeps, as the controller
//! does not sleep with it.

use std::fmt;
use std::time::Duration;

use crate::model::SessionId;

/// Within this after the end of its lease a worker, or its guard, has ended every VM that may be started elsewhere: the
/// controller waits for that long before it does so. See [`LOOK`] and the limits of `guard::end`, which add up to less.
pub const FENCE_TIME: Duration = Duration::from_secs(10);

/// How often the clock is looked at. A timer alone would not do: it stands still while the machine sleeps.
pub const LOOK: Duration = Duration::from_millis(500);

/// A moment, as the time since the machine's start, its sleep included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    /// That long after the machine's start.
    pub fn since_boot(time: Duration) -> Self {
        Self(time)
    }

    /// Whole milliseconds since the machine's start; rounded down, so that a lease that is written down is never longer.
    pub fn millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }

    fn after(self, length: Duration) -> Self {
        Self(self.0.saturating_add(length))
    }

    /// How long it is from `now` to this moment; zero once it has passed.
    pub fn from(self, now: Moment) -> Duration {
        self.0.saturating_sub(now.0)
    }
}

/// A lease, valid or over. It changes only when it is looked at or renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// When the message that last renewed it was sent.
    sent: Moment,
    until: Moment,
    over: bool,
    lapses: u64,
    /// The session in which it was granted, while it is valid; none if that was in an earlier process.
    session: Option<SessionId>,
}

impl Lease {
    /// One that is over: what a worker has that was never let in.
    pub fn none() -> Self {
        Self { sent: Moment::default(), until: Moment::default(), over: true, lapses: 0, session: None }
    }

    /// The one that an earlier process of this worker had.
    pub fn restored(until: Moment, now: Moment) -> Self {
        Self { sent: Moment::default(), until, over: until <= now, lapses: 0, session: None }
    }

    /// Whether it is valid; notes its end, for good until it is renewed.
    pub fn look(&mut self, now: Moment) -> bool {
        if !self.over && self.until <= now {
            self.over = true;
            self.session = None;
            self.lapses = self.lapses.saturating_add(1);
        }
        !self.over
    }

    /// Takes in that the controller has let the worker in, in `session`, by a message sent at `sent`, for `length`.
    pub fn grant(&mut self, session: SessionId, sent: Moment, length: Duration, now: Moment) {
        self.extend(sent, length, now);
        self.session = Some(session).filter(|_| !self.over);
    }

    /// Takes in that the controller has acknowledged a message of `session` sent at `sent`, for `length`; says whether the
    /// lease is valid in that session. One that was over is not revived by this: what the worker was told under it may
    /// be out of date, so it has to register again and to hear what it shall run now.
    pub fn renew(&mut self, session: SessionId, sent: Moment, length: Duration, now: Moment) -> bool {
        if self.look(now) && self.session == Some(session) {
            self.extend(sent, length, now);
        }
        self.session == Some(session)
    }

    /// An earlier message than the last one changes nothing. The length counts even when it makes the lease shorter than it
    /// was: a controller that was started anew with shorter leases counts by those.
    fn extend(&mut self, sent: Moment, length: Duration, now: Moment) {
        self.look(now);
        if sent >= self.sent {
            self.sent = sent;
            self.until = sent.after(length);
            self.over = self.over && self.until <= now;
            self.look(now);
        }
    }

    /// The session in which it is valid.
    pub fn session(&self) -> Option<SessionId> {
        self.session
    }

    /// When it is over, or was.
    pub fn until(&self) -> Moment {
        self.until
    }

    /// How often it has been over since this process began. Who compares two readings sees an end that was over again
    /// before anybody looked.
    pub fn lapses(&self) -> u64 {
        self.lapses
    }
}

/// The lease as it stands in a file, of fixed length so that it is written in place: replacing the file would need free
/// space on the disk, and a full disk must not cost VMs. The sum at its end tells a half-written one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The start of the machine whose clock `until` is of.
    pub boot: String,
    /// The end of the lease.
    pub until: Moment,
}

/// Bytes of the boot's name that are kept; it is a UUID.
const BOOT_LEN: usize = 36;
const TITLE: &str = "orchard-lease-1";

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let boot: String = self.boot.chars().filter(char::is_ascii_graphic).take(BOOT_LEN).collect();
        let body = format!("{TITLE} {boot:->BOOT_LEN$} {:020}", self.until.millis());
        writeln!(f, "{body} {:08x}", sum(&body))
    }
}

impl Written {
    /// Reads one; `None` for anything else.
    pub fn read(text: &str) -> Option<Self> {
        let (body, written_sum) = text.strip_suffix('\n')?.rsplit_once(' ')?;
        if u32::from_str_radix(written_sum, 16).ok()? != sum(body) {
            return None;
        }
        let mut words = body.split(' ');
        let (title, boot, until) = (words.next()?, words.next()?, words.next()?);
        let millis: u64 = until.parse().ok().filter(|_| title == TITLE && words.next().is_none())?;
        let boot = boot.trim_start_matches('-').to_owned();
        Some(Self { boot, until: Moment::since_boot(Duration::from_millis(millis)) })
    }

    /// The moment, if it is of this start of the machine.
    pub fn until_in(&self, boot: &str) -> Option<Moment> {
        (!boot.is_empty() && self.boot == boot).then_some(self.until)
    }
}

/// FNV-1a: guards against accidents, not against people, who could end the VMs themselves.
fn sum(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |sum, byte| (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::since_boot(Duration::from_secs(seconds))
    }

    const LENGTH: Duration = Duration::from_secs(60);
    const SESSION: SessionId = SessionId(uuid::Uuid::from_u128(1));

    #[test]
    fn it_is_counted_from_the_sending_and_not_from_the_answer() {
        let mut lease = Lease::none();
        assert!(!lease.look(at(1)));
        lease.grant(SESSION, at(100), LENGTH, at(150));
        assert!(lease.look(at(159)) && !lease.look(at(160)));
    }

    #[test]
    fn an_answer_that_comes_after_the_end_renews_nothing() {
        let mut lease = Lease::none();
        lease.grant(SESSION, at(100), LENGTH, at(200));
        assert!(!lease.look(at(200)));
        assert_eq!(lease.lapses(), 0, "it never was valid");
    }

    #[test]
    fn an_end_is_seen_although_it_was_renewed_before_anybody_looked() {
        let mut lease = Lease::none();
        lease.grant(SESSION, at(0), LENGTH, at(0));
        let before = lease.lapses();
        // The process stood still for two minutes, and the first thing it does is to take in an answer.
        lease.grant(SESSION, at(119), LENGTH, at(120));
        assert!(lease.look(at(120)));
        assert_eq!(lease.lapses(), before + 1);
        assert!(lease.look(at(178)) && !lease.look(at(179)));
        assert_eq!(lease.lapses(), before + 2);
        assert!(!lease.look(at(500)));
        assert_eq!(lease.lapses(), before + 2, "an end counts once");
    }

    #[test]
    fn what_is_renewed_in_time_never_ends() {
        let mut lease = Lease::none();
        for now in (0..10_000).step_by(55) {
            lease.grant(SESSION, at(now), LENGTH, at(now + 1));
            assert!(lease.look(at(now + 54)));
        }
        assert_eq!(lease.lapses(), 0);
    }

    #[test]
    fn a_controller_with_shorter_leases_is_followed_at_once_and_an_old_answer_is_not() {
        let mut lease = Lease::none();
        lease.grant(SESSION, at(100), LENGTH, at(101));
        lease.grant(SESSION, at(103), Duration::from_secs(5), at(103));
        assert_eq!(lease.until(), at(108));
        lease.grant(SESSION, at(102), LENGTH, at(104));
        assert_eq!(lease.until(), at(108));
    }

    #[test]
    fn only_a_registration_revives_one_that_was_over() {
        let mut lease = Lease::none();
        lease.grant(SESSION, at(0), LENGTH, at(0));
        assert!(lease.renew(SESSION, at(59), LENGTH, at(59)));
        assert!(!lease.renew(SESSION, at(119), LENGTH, at(120)), "it was over at 119");
        assert!(!lease.renew(SESSION, at(121), LENGTH, at(121)) && !lease.look(at(121)));
        let next = SessionId(uuid::Uuid::from_u128(2));
        lease.grant(next, at(122), LENGTH, at(122));
        assert!(!lease.renew(SESSION, at(123), LENGTH, at(123)), "a late answer of the session before");
        assert_eq!((lease.session(), lease.until()), (Some(next), at(182)));
    }

    #[test]
    fn what_an_earlier_process_had_goes_on() {
        assert!(Lease::restored(at(10), at(9)).look(at(9)));
        assert!(!Lease::restored(at(10), at(10)).look(at(10)));
    }

    #[test]
    fn the_file_is_of_one_length_and_of_one_start_of_the_machine() {
        let boot = "0e4e3a0a-4f0c-4b7e-9c43-5f7ce0e8c0de";
        let one = Written { boot: boot.to_owned(), until: at(7) };
        assert_eq!(Written::read(&one.to_string()), Some(one.clone()));
        assert_eq!((one.until_in(boot), one.until_in("other"), one.until_in("")), (Some(at(7)), None, None));
        let none = Written { boot: String::new(), until: Moment::since_boot(Duration::MAX) };
        assert_eq!(none.to_string().len(), one.to_string().len());
        assert_eq!(none.until_in(""), None, "a start without a name is not known to be the same");
    }

    proptest! {
        #[test]
        fn a_file_that_is_half_old_and_half_new_is_not_read(old: u32, new: u32, cut in 0usize..84) {
            let text = |until: u32| Written { boot: "b".into(), until: at(until.into()) }.to_string();
            let (old, new) = (text(old), text(new));
            let mixed = format!("{}{}", &new[..cut], &old[cut..]);
            prop_assert!(mixed == old || mixed == new || Written::read(&mixed).is_none());
        }

        #[test]
        fn no_text_upsets_the_reader(text in "(orchard-lease-1 )?.*\n?") {
            let _ = Written::read(&text);
        }
    }
}
