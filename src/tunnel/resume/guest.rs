//! The guest's end: holds the connection into the guest, and is carried by whichever stream was brought last. [`keep`] is the
//! whole life of one session; the worker's session keeper runs it.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::drive::{Carrier, Event, Local, drive};
use super::end::End;
use crate::tunnel::reason::Reason;

/// How long a session stays for which all is done but that the client knows: it comes back at once, or needs nothing any more.
const SETTLED_FOR: Duration = Duration::from_secs(30);

/// Keeps a session until it is over, nobody comes back for it within `kept_for`, or `streams` is closed, which brings each
/// stream that is to carry the session from then on. Yields why it ended, for the log. Dropping the future closes the guest's
/// connection.
pub async fn keep<L, T>(guest: L, mut streams: mpsc::Receiver<T>, kept_for: Duration) -> String
where
    L: AsyncRead + AsyncWrite,
    T: AsyncRead + AsyncWrite,
{
    let mut end = End::at_guest();
    let mut local = Local::new(guest, Reason::GuestReset);
    let mut carrier: Option<Carrier<T>> = None;
    let mut until = Instant::now() + kept_for;
    loop {
        let carried = carrier.is_some();
        let event = tokio::select! {
            event = drive(&mut end, &mut local, carrier.as_mut()) => event,
            next = streams.recv() => {
                let Some(next) = next else { return "given up by its keeper".to_owned() };
                // The one before is of a worker, or of a connection, that is not there any more.
                if carried {
                    end.detach();
                }
                carrier = Some(Carrier::new(next));
                end.attach();
                continue;
            }
            () = sleep_until(until), if !carried => {
                return format!("nobody came back for it within {} s", kept_for.as_secs());
            }
        };
        match event {
            Event::Greeted => {}
            Event::Over(over) => {
                if let Some(carrier) = carrier.take() {
                    carrier.farewell().await;
                }
                return over.to_string();
            }
            Event::Lost(why) => {
                tracing::debug!(%why, "a session lost what carried it");
                carrier = None;
                end.detach();
                if !end.has_met() {
                    return "its client was never heard".to_owned();
                }
                until = Instant::now() + if end.is_satisfied() { SETTLED_FOR.min(kept_for) } else { kept_for };
            }
        }
    }
}
