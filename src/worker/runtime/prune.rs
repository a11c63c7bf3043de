//! Which images of a cache go when the disk is short of room. Pure; the runtimes ask and remove.

/// An image in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cached {
    /// Its file in the store.
    pub file: String,
    /// Where it came from, as people may see it; more than one when two addresses led to the same bytes.
    pub sources: Vec<String>,
    /// What it takes on the disk, in bytes.
    pub bytes: u64,
    /// When a VM was last made from it, or it was fetched, in seconds since 1970.
    pub last_used: u64,
    /// A VM's disk stands on it, or is about to.
    pub in_use: bool,
}

impl Cached {
    /// What people call it.
    pub fn name(&self) -> &str {
        self.sources.first().unwrap_or(&self.file)
    }

    /// The digest of its bytes, as the file is named by.
    pub fn digest(&self) -> Option<String> {
        let (hex, _) = self.file.strip_prefix("sha256-")?.split_once('.')?;
        Some(format!("sha256:{hex}"))
    }
}

/// The images to remove so that `wanted` bytes are free where `free` are: of those not in use, the ones not used for longest,
/// and no more than it takes. None when that would not be enough: then nothing is gained by it.
pub fn choose(images: &[Cached], free: u64, wanted: u64) -> Vec<&Cached> {
    let chosen = choose_up_to(images, free, wanted);
    let gained = chosen.iter().fold(free, |free, image| free.saturating_add(image.bytes));
    if gained >= wanted { chosen } else { Vec::new() }
}

/// The same, but all that are not in use when that would not be enough: what there is to gain, is gained.
pub fn choose_up_to(images: &[Cached], free: u64, wanted: u64) -> Vec<&Cached> {
    let mut unused: Vec<&Cached> = images.iter().filter(|image| !image.in_use).collect();
    unused.sort_by_key(|image| (image.last_used, image.file.as_str()));
    let mut room = free;
    let needed = |image: &&Cached| {
        let needed = room < wanted;
        room = room.saturating_add(image.bytes);
        needed
    };
    unused.into_iter().take_while(needed).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn image(file: &str, bytes: u64, last_used: u64, in_use: bool) -> Cached {
        Cached { file: file.into(), sources: Vec::new(), bytes, last_used, in_use }
    }

    #[test]
    fn the_ones_unused_for_longest_go_and_no_more_than_needed() {
        let images = [image("new", 10, 9, false), image("old", 10, 1, false), image("mid", 10, 5, false)];
        let files = |chosen: Vec<&Cached>| chosen.iter().map(|image| image.file.clone()).collect::<Vec<_>>();
        assert_eq!(files(choose(&images, 100, 100)), Vec::<String>::new());
        assert_eq!(files(choose(&images, 0, 10)), ["old"]);
        assert_eq!(files(choose(&images, 0, 11)), ["old", "mid"]);
        assert_eq!(files(choose(&images, 0, 31)), Vec::<String>::new(), "it would not be enough");
        assert_eq!(files(choose_up_to(&images, 0, 11)), ["old", "mid"]);
        assert_eq!(files(choose_up_to(&images, 0, 31)), ["old", "mid", "new"], "all that can be had");
    }

    proptest! {
        #[test]
        fn what_is_in_use_never_goes_and_what_goes_is_enough(
            list in proptest::collection::vec((0u64..100, 0u64..10, any::<bool>()), 0..12),
            free in 0u64..300, wanted in 0u64..600,
        ) {
            let images: Vec<Cached> =
                list.iter().enumerate().map(|(n, (bytes, used, in_use))| image(&n.to_string(), *bytes, *used, *in_use)).collect();
            let chosen = choose(&images, free, wanted);
            let most = choose_up_to(&images, free, wanted);
            prop_assert!(most.iter().all(|image| !image.in_use));
            let freed: u64 = chosen.iter().map(|image| image.bytes).sum();
            prop_assert!(chosen.is_empty() || (free < wanted && free + freed >= wanted));
            prop_assert!(chosen.is_empty() || chosen == most);
            // Nobody goes who was used later than one that stays.
            let stays = images.iter().filter(|image| !image.in_use && !most.contains(image)).map(|image| image.last_used).min();
            prop_assert!(most.iter().all(|image| stays.is_none_or(|stays| image.last_used <= stays)));
            let gained: u64 = most.iter().map(|image| image.bytes).sum();
            let all: u64 = images.iter().filter(|image| !image.in_use).map(|image| image.bytes).sum();
            prop_assert!(free + gained >= wanted || gained == all, "as much as can be had");
        }
    }
}
