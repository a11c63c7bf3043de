//! Durations as people write them: `90s`, `5m30s`, `1h`. Pure.

use std::time::Duration;

/// The longest that is read: a century. What is meant for ever has a word of its own, and no clock overflows.
pub const MAX: Duration = Duration::from_secs(36_525 * 86_400);

/// Reads a duration, up to [`MAX`]. A bare number counts seconds, as it did in the options of older releases.
///
/// # Errors
/// What was found and how to write it.
pub fn parse(text: &str) -> Result<Duration, String> {
    match parse_any(text)? {
        duration if duration > MAX => Err(too_far(text, MAX)),
        duration => Ok(duration),
    }
}

/// Reads how long something is good: at least a second, at most `most`.
///
/// # Errors
/// As for [`parse`].
pub fn parse_life(text: &str, most: Duration) -> Result<Duration, String> {
    match parse(text)? {
        life if life.as_secs() == 0 => Err(format!("{text:?} is over at once; give at least 1s, such as 12h or 30d")),
        life if life > most => Err(too_far(text, most)),
        life => Ok(life),
    }
}

fn too_far(text: &str, most: Duration) -> String {
    format!("{text:?} is too far in the future; at most {}d can be given", most.as_secs() / 86_400)
}

/// Reads a duration however long, for callers with a bound of their own to tell of.
///
/// # Errors
/// What was found and how to write it.
pub fn parse_any(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration; write it like 90s, 5m30s or 1h");
    let trimmed = text.trim();
    if let Ok(seconds) = trimmed.parse::<u32>() {
        return Ok(Duration::from_secs(seconds.into()));
    }
    // Days of 24 hours: what ends a token is no matter of a calendar.
    if let Some(days) = trimmed.strip_suffix('d').and_then(|days| days.parse::<u32>().ok()) {
        return Ok(Duration::from_secs(u64::from(days) * 86_400));
    }
    let signed: jiff::SignedDuration = trimmed.parse().map_err(|_| wrong())?;
    Duration::try_from(signed).map_err(|_| wrong())
}

/// Writes a duration shortly, in whole seconds: `1h2m3s`.
pub fn show(duration: Duration) -> String {
    let total = duration.as_secs();
    let (hours, minutes, seconds) = (total / 3600, total / 60 % 60, total % 60);
    let mut text = String::new();
    for (amount, unit) in [(hours, 'h'), (minutes, 'm'), (seconds, 's')] {
        if amount > 0 {
            text.push_str(&format!("{amount}{unit}"));
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_style_durations_are_read() {
        for (text, seconds) in
            [("90s", 90.0), ("5m30s", 330.0), ("1h", 3600.0), ("250ms", 0.25), ("60", 60.0), ("7d", 604_800.0)]
        {
            assert_eq!(parse(text), Ok(Duration::from_secs_f64(seconds)), "{text}");
        }
        for text in ["", "-5s", "soon", "5x", "1.5.2s", "99999999999999999999s"] {
            assert!(parse(text).unwrap_err().contains("90s"), "{text}");
        }
    }

    #[test]
    fn what_no_clock_reaches_and_what_is_over_at_once_are_refused() {
        for text in ["36526d", "4294967295d", "99999999h", "9223372036854775807s"] {
            assert!(parse(text).unwrap_err().contains("at most 36525d"), "{text}");
        }
        let year = Duration::from_secs(366 * 86_400);
        for (text, hint) in [("0", "1s"), ("0s", "1s"), ("999ms", "1s"), ("367d", "at most 366d"), ("soon", "90s")] {
            assert!(parse_life(text, year).unwrap_err().contains(hint), "{text}");
        }
        assert_eq!(parse_life("366d", year), Ok(year));
    }

    proptest::proptest! {
        #[test]
        fn what_is_shown_is_read_back(seconds in 0u64..10_000_000) {
            let duration = Duration::from_secs(seconds);
            proptest::prop_assert_eq!(parse(&show(duration)), Ok(duration));
        }
    }
}
