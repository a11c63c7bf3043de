//! Where a worker's process runs, as it tells when it registers: what distinguishes the folder that joined from a copy of it,
//! elsewhere or beside it. Pure. Made by the worker, judged by the cluster core.
//!
//! Written as `HOST.BOOT.DEVICE.FOLDER`, each part a short hash. Older workers wrote a single hash of everything, of which
//! nothing but equality can be told.

use std::fmt;

/// The longest part, in bytes: more than any hash that is written.
const MAX_PART: usize = 32;

/// A place, in its parts. Each is in letters and digits; an empty one is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The machine, over all its starts.
    pub host: String,
    /// This start of the machine.
    pub boot: String,
    /// The file system that holds the data folder, for as long as it is mounted: systems number them anew.
    pub device: String,
    /// The data folder itself, wherever it is mounted; its copies have another one.
    pub folder: String,
}

impl Place {
    /// Reads a place; `None` for an empty one, one of the older form, and anything else.
    pub fn read(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let mut part = || {
            let part = parts.next()?;
            let fits = part.len() <= MAX_PART && part.bytes().all(|byte| byte.is_ascii_alphanumeric());
            fits.then(|| part.to_owned())
        };
        let place = Self { host: part()?, boot: part()?, device: part()?, folder: part()? };
        // Without these two, nothing that is asked of a place can be answered.
        let said = !place.boot.is_empty() && !place.folder.is_empty();
        (said && parts.next().is_none()).then_some(place)
    }

    /// Whether this is plainly where `before` was, after that machine was started again: no process of then is left.
    pub fn is_after_reboot_of(&self, before: &Place) -> bool {
        self.host == before.host && self.folder == before.folder && self.boot != before.boot
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}.{}", self.host, self.boot, self.device, self.folder)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(text: &str) -> Place {
        Place::read(text).unwrap()
    }

    #[test]
    fn the_same_folder_after_a_reboot_is_told_from_copies() {
        let before = place("h.b1.d.f");
        for after in ["h.b2.d.f", "h.b2.other.f"] {
            assert!(place(after).is_after_reboot_of(&before), "{after}");
        }
        for copy in ["h.b1.d.f", "h.b1.d.g", "h.b1.e.f", "h.b2.d.g", "i.b2.d.f", ".b2.d.f"] {
            assert!(!place(copy).is_after_reboot_of(&before), "{copy}");
        }
        assert!(place(".b2.d.f").is_after_reboot_of(&place(".b1.d.f")), "a system without an id of its own");
    }

    #[test]
    fn what_is_no_place_is_not_read() {
        for wrong in
            ["", "0123456789abcdef0123456789abcdef", "h.b.f", "h..d.f", "h.b.d.", "h.b.d.f.g", "h.b.d.f ", "h.b.é.f"]
        {
            assert_eq!(Place::read(wrong), None, "{wrong}");
        }
        assert_eq!(Place::read(&format!("h.b.d.{}", "f".repeat(MAX_PART + 1))), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(host in "[a-z0-9]{0,32}", boot in "[a-z0-9]{1,32}", device in "[a-z0-9]{0,32}", folder in "[a-z0-9]{1,32}") {
            let place = Place { host, boot, device, folder };
            prop_assert_eq!(Place::read(&place.to_string()), Some(place));
        }

        #[test]
        fn any_text_is_read_or_not(text in ".{0,80}") {
            if let Some(place) = Place::read(&text) {
                prop_assert_eq!(place.to_string(), text);
            }
        }
    }
}
