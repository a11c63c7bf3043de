//! The DHCP leases of a Mac's guests. macOS gives each guest an address for a day unless it is told otherwise, and has some
//! 250 of them: a host of short-lived guests has none left after an hour, and new guests get no network. Looked at once,
//! when a worker with Tart starts, and only ever warned of. Reading is pure; what asks the system runs on macOS alone.

use std::time::Duration;

use serde::Deserialize;

/// Where macOS keeps what its DHCP server is told.
const SETTINGS: &str = "/Library/Preferences/SystemConfiguration/com.apple.InternetSharing.default.plist";
/// Leases up to this are short enough.
const LONG: Duration = Duration::from_secs(3600);
/// What asking may take.
#[cfg(target_os = "macos")]
const ASK_LIMIT: Duration = Duration::from_secs(10);

/// What has shorter leases given out.
const HOW: &str = "sudo defaults write /Library/Preferences/SystemConfiguration/com.apple.InternetSharing.default.plist \
                   bootpd -dict DHCPLeaseTimeSecs -int 600";

#[derive(Deserialize)]
struct Settings {
    bootpd: Option<Bootpd>,
}

#[derive(Deserialize)]
struct Bootpd {
    #[serde(rename = "DHCPLeaseTimeSecs")]
    seconds: Option<u64>,
}

/// How the settings are read: macOS writes them in a format of its own, which this makes JSON.
pub fn arguments() -> [&'static str; 5] {
    ["-convert", "json", "-o", "-", SETTINGS]
}

/// For how long leases are given, as the settings in JSON say; none if they do not.
///
/// # Errors
/// When they are not readable.
pub fn read(json: &str) -> Result<Option<Duration>, String> {
    let settings: Settings = serde_json::from_str(json).map_err(|error| error.to_string())?;
    let seconds = settings.bootpd.and_then(|bootpd| bootpd.seconds).filter(|seconds| *seconds > 0);
    Ok(seconds.map(Duration::from_secs))
}

/// What to warn of; none if leases are short. `known` is what [`read`] said, or that there are no settings.
pub fn warning(known: Result<Option<Duration>, String>) -> Option<String> {
    let why = match known {
        Ok(Some(lease)) if lease <= LONG => return None,
        Ok(Some(lease)) => format!("the DHCP leases of VMs last {} s on this host", lease.as_secs()),
        Ok(None) => "the DHCP leases of VMs last a day on this host, as nothing else is set".to_owned(),
        Err(error) => format!("cannot see for how long the DHCP leases of VMs last on this host ({error})"),
    };
    Some(format!("{why}; with many short-lived VMs its addresses run out. `{HOW}` makes that ten minutes"))
}

/// Looks, and warns in the log.
#[cfg(target_os = "macos")]
pub async fn check() {
    let known = if std::path::Path::new(SETTINGS).exists() {
        let (program, arguments) = (std::path::Path::new("/usr/bin/plutil"), arguments());
        let asked = crate::worker::runtime::tool::run(program, &arguments, None, ASK_LIMIT).await;
        asked.map_err(|error| error.to_string()).and_then(|json| read(&json))
    } else {
        Ok(None)
    };
    if let Some(warning) = warning(known) {
        tracing::warn!("{warning}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_leases_are_warned_of_and_short_ones_are_not() {
        let told = |json| warning(read(json));
        assert_eq!(told(r#"{"bootpd":{"DHCPLeaseTimeSecs":600},"other":1}"#), None);
        assert_eq!(told(r#"{"bootpd":{"DHCPLeaseTimeSecs":3600}}"#), None);
        assert!(told(r#"{"bootpd":{"DHCPLeaseTimeSecs":3601}}"#).unwrap().contains("3601 s"));
        for unset in [r#"{"bootpd":{"DHCPLeaseTimeSecs":0}}"#, r#"{"bootpd":{}}"#, "{}"] {
            assert!(told(unset).unwrap().contains("a day"), "{unset}");
        }
        assert!(warning(Ok(None)).unwrap().contains("DHCPLeaseTimeSecs"));
        for broken in ["", "[1]", r#"{"bootpd":{"DHCPLeaseTimeSecs":"x"}}"#] {
            assert!(told(broken).unwrap().starts_with("cannot see"), "{broken}");
        }
        assert!(arguments().contains(&SETTINGS));
    }
}
