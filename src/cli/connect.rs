//! The streams of `ssh` and its like ([`crate::client::tunnel`]), and what their user is told on the terminal.

use std::io::Write as _;
use std::sync::Arc;

use super::client::Client;
use super::output;
pub(super) use crate::client::tunnel::{Dialer, End, Opened, Place, Stream};
use crate::client::tunnel::{Notice, Observer};
use crate::ssh::terminal;
use crate::tunnel::resume::GIVE_UP_AFTER;

/// Opens streams, and says on standard error when they are lost and when they go on.
pub(super) fn dialer(client: &Client) -> Dialer {
    let observer: Arc<Observer> = Arc::new(|notice| match notice {
        Notice::Lost(why) => {
            let minutes = GIVE_UP_AFTER.as_secs() / 60;
            tell(&format!("connection lost: {}; trying again for {minutes} min (Ctrl-C ends)", output::clean(why)));
        }
        Notice::Restored => tell("connected again"),
    });
    Dialer::new(client.clone(), observer)
}

/// A line on standard error, which may be the guest's terminal now.
pub(super) fn tell(text: &str) {
    let end = if terminal::is_raw() { "\r\n" } else { "\n" };
    // Nobody may be there to read it any more.
    let _ = write!(std::io::stderr(), "{}{text}{end}", if terminal::is_raw() { end } else { "" });
}
