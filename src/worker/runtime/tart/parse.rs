//! Reads what `tart` and `vetu` print. Pure; `tests/fixtures/tools` has samples.

use core::net::IpAddr;

use serde::Deserialize;

use super::names::parse_disk_name;
use crate::model::{CopyId, Timestamp, VmName};
use crate::worker::runtime::CachedImage;

/// How much of an unreadable answer an error shows.
const SHOWN: usize = 120;
/// The longest name of an image that is taken for one.
const MAX_IMAGE: usize = 512;

/// One entry of `list --format json`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Listed {
    pub(super) name: String,
    #[serde(default)]
    pub(super) running: bool,
    #[serde(default)]
    pub(super) state: String,
    #[serde(default)]
    source: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    accessed: Option<String>,
}

/// The sizes of images are told in GB.
const GIGABYTE: u64 = 1_000_000_000;

impl Listed {
    /// Whether its memory lies beside its disk.
    pub(super) fn is_suspended(&self) -> bool {
        self.state == "suspended"
    }
}

/// All that the tool lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Listing(Vec<Listed>);

impl Listing {
    /// Reads the tool's answer.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map(Self).map_err(|error| {
            let said: String = text.trim().chars().take(SHOWN).collect();
            format!("did not answer in the expected JSON ({error}) but {said:?}; is it too old?")
        })
    }

    /// The VMs that Orchard made; all others are nobody's business here.
    pub(super) fn ours(self) -> impl Iterator<Item = (VmName, CopyId, Listed)> {
        self.0.into_iter().filter_map(|vm| parse_disk_name(&vm.name).map(|(name, id)| (name, id, vm)))
    }

    /// Whether a clone of `image` needs no fetching.
    pub(super) fn has(&self, image: &str) -> bool {
        self.0.iter().any(|entry| entry.name == image)
    }

    /// The images that were fetched. None is in use: VMs are copies, and do not need what they were cloned from.
    pub(super) fn images(self) -> Vec<CachedImage> {
        let fetched = self.0.into_iter().filter(|entry| entry.source.eq_ignore_ascii_case("oci"));
        let image = |entry: Listed| CachedImage {
            digest: entry.name.split_once('@').map(|(_, digest)| digest.to_owned()),
            bytes: entry.size.saturating_mul(GIGABYTE),
            last_used: entry.accessed.and_then(|text| time(&text)),
            in_use: false,
            name: entry.name,
        };
        fetched.map(image).collect()
    }
}

/// A time as the tools write it; `None` for anything else.
fn time(text: &str) -> Option<Timestamp> {
    serde_json::from_value(serde_json::Value::from(text)).ok()
}

/// The address that `ip` tells.
pub(super) fn address(text: &str) -> Option<IpAddr> {
    text.trim().parse().ok()
}

/// The image that `fqn` tells; `None` unless it is named by its digest.
pub(super) fn fqn(text: &str) -> Option<String> {
    let name = text.trim();
    let one = name.len() <= MAX_IMAGE && !name.contains(char::is_whitespace);
    (one && name.contains("@sha256:")).then(|| name.to_owned())
}

/// Follows the lines of `pull`, or of a `clone` that fetches.
#[derive(Debug, Default)]
pub(super) struct FetchProgress {
    size: Option<String>,
}

impl FetchProgress {
    /// How far it is, for a status message; `None` if the line does not say.
    pub(super) fn read(&mut self, line: &str) -> Option<String> {
        let sized = line.split_once(" compressed)").and_then(|(head, _)| head.rsplit_once('('));
        if let Some((_, size)) = sized {
            self.size = Some(size.to_owned());
        }
        let Some((before, after)) = line.split_once('%') else {
            return line.starts_with("pulling").then(|| line.trim_end_matches('.').to_owned());
        };
        let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        let percent: u64 = digits.parse().ok().filter(|percent| *percent <= 100)?;
        let bytes = after.split_once('(').and_then(|(_, rest)| rest.split([',', ')']).next());
        Some(match (bytes.map(str::trim).filter(|bytes| bytes.contains('/')), &self.size) {
            (Some(bytes), _) => format!("pulling the image: {percent}% ({bytes})"),
            (None, Some(size)) => match part_of(size, percent) {
                Some(part) => format!("pulling the image: {percent}% of {size} ({part})"),
                None => format!("pulling the image: {percent}% of {size}"),
            },
            (None, None) => format!("pulling the image: {percent}%"),
        })
    }
}

/// So many percent of an amount such as `24.1 GB`, in the same unit; `None` if it is not one.
fn part_of(size: &str, percent: u64) -> Option<String> {
    let (amount, unit) = size.trim().split_once(' ')?;
    let amount: f64 = amount.parse().ok().filter(|amount: &f64| amount.is_finite() && *amount >= 0.0)?;
    let known = ["bytes", "KB", "MB", "GB", "TB", "KiB", "MiB", "GiB", "TiB"].contains(&unit);
    // Far below the whole numbers that an f64 holds exactly.
    let percent = f64::from(u32::try_from(percent).ok()?);
    known.then(|| format!("{:.1} {unit}", amount * percent / 100.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TART: &str = include_str!("../../../../tests/fixtures/tools/tart-list.json");
    const VETU: &str = include_str!("../../../../tests/fixtures/tools/vetu-list.json");

    #[test]
    fn lists_of_both_tools_are_read() {
        let ours: Vec<_> = Listing::parse(TART).unwrap().ours().collect();
        let shown: Vec<_> = ours.iter().map(|(name, id, vm)| (name.as_str(), id.attempt, vm.running)).collect();
        assert_eq!(shown, [("build-1", 0, true), ("build-2", 3, false)]);
        assert!(!ours[0].2.is_suspended() && ours[1].2.is_suspended());
        let ours: Vec<_> = Listing::parse(VETU).unwrap().ours().collect();
        assert_eq!((ours.len(), ours[0].0.as_str(), ours[0].2.running), (1, "ci", true));
        assert_eq!(Listing::parse("[]").unwrap(), Listing::default());
    }

    #[test]
    fn images_are_told_from_vms() {
        let listing = Listing::parse(TART).unwrap();
        assert!(listing.has("ghcr.io/cirruslabs/macos-tahoe-base:latest") && listing.has("sequoia-of-the-owner"));
        assert!(!listing.has("ghcr.io/cirruslabs/macos-tahoe-base"));
        let images = listing.images();
        assert_eq!(images.len(), 2);
        assert_eq!((images[0].bytes, &images[0].digest, images[0].in_use), (24_000_000_000, &None, false));
        assert!(images[1].digest.as_deref().unwrap().starts_with("sha256:3f0c"));
        assert_eq!(time("2026-05-11T08:12:44Z").unwrap().to_string(), "2026-05-11T08:12:44.000Z");
        assert_eq!(time("yesterday"), None);
        assert_eq!(Listing::parse(VETU).unwrap().images()[0].name, "ghcr.io/cirruslabs/ubuntu:latest");
    }

    #[test]
    fn an_answer_that_is_no_list_is_shown() {
        let error = Listing::parse("Error: unknown flag: --format\nUsage:").unwrap_err();
        assert!(error.contains("unknown flag: --format") && error.contains("too old"), "{error}");
    }

    #[test]
    fn addresses_and_digests_are_read_or_refused() {
        let ip = address(include_str!("../../../../tests/fixtures/tools/tart-ip.txt"));
        assert_eq!(ip, Some("192.168.64.17".parse().unwrap()));
        assert_eq!(address(include_str!("../../../../tests/fixtures/tools/tart-ip-none.txt")), None);
        let name = fqn(include_str!("../../../../tests/fixtures/tools/tart-fqn.txt")).unwrap();
        assert!(name.starts_with("ghcr.io/cirruslabs/macos-tahoe-base@sha256:3f0c"));
        for bad in ["", "latest", "a b@sha256:1", "x@sha256:1\nmore"] {
            assert_eq!(fqn(bad), None, "{bad:?}");
        }
    }

    fn followed(sample: &str) -> Vec<String> {
        let mut told = Vec::new();
        let mut kept = crate::worker::runtime::said::Kept::default();
        let mut progress = FetchProgress::default();
        kept.add(sample.len(), sample.as_bytes(), &mut |line| told.extend(progress.read(line)));
        told
    }

    #[test]
    fn how_far_a_pull_is_comes_out_of_what_it_prints() {
        let told = followed(include_str!("../../../../tests/fixtures/tools/tart-pull.txt"));
        assert_eq!(told[0], "pulling ghcr.io/cirruslabs/macos-tahoe-base:latest");
        assert!(told.contains(&"pulling the image: 42% of 24.1 GB (10.1 GB)".to_owned()), "{told:?}");
        assert_eq!(part_of("lots of GB", 5), None);
        assert_eq!(part_of("2.5 GB", 90).as_deref(), Some("2.2 GB"));
        let told = followed(include_str!("../../../../tests/fixtures/tools/vetu-pull.txt"));
        assert!(told.contains(&"pulling the image: 37% (522/1412 MB)".to_owned()), "{told:?}");
        assert!(told.contains(&"pulling the image: 0% (0 B/1.4 GB)".to_owned()), "{told:?}");
    }

    proptest! {
        #[test]
        fn no_output_upsets_the_parsers(text in ".{0,200}") {
            let _ = (Listing::parse(&text), address(&text), fqn(&text), FetchProgress::default().read(&text));
        }
    }
}
