//! Durations as people write them: `90s`, `5m30s`, `1h`. Pure.

use std::time::Duration;

/// Reads a duration. A bare number counts seconds, as it did in the options of older releases.
///
/// # Errors
/// What was found and how to write it.
pub fn parse(text: &str) -> Result<Duration, String> {
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

    proptest::proptest! {
        #[test]
        fn what_is_shown_is_read_back(seconds in 0u64..10_000_000) {
            let duration = Duration::from_secs(seconds);
            proptest::prop_assert_eq!(parse(&show(duration)), Ok(duration));
        }
    }
}
