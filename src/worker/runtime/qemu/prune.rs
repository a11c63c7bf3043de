//! Which images of the cache go when the disk is short of room. Pure; `image.rs` asks and removes.

/// An image in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cached {
    /// Its file in the store.
    pub file: String,
    /// Where it came from, as people may see it; more than one when two addresses led to the same bytes.
    pub sources: Vec<String>,
    /// What it takes on the disk, in bytes.
    pub bytes: u64,
    /// When a VM was last made from it, in seconds since 1970.
    pub last_used: u64,
    /// A VM's disk stands on it, or is about to.
    pub in_use: bool,
}

/// The files to remove so that `wanted` bytes are free where `free` are: of those not in use, the ones not used for longest,
/// and no more than it takes. None when that would not be enough: then nothing is gained by it.
pub fn choose(images: &[Cached], free: u64, wanted: u64) -> Vec<&str> {
    let mut unused: Vec<&Cached> = images.iter().filter(|image| !image.in_use).collect();
    unused.sort_by_key(|image| (image.last_used, image.file.as_str()));
    let (mut room, mut chosen) = (free, Vec::new());
    for image in unused {
        if room >= wanted {
            break;
        }
        room = room.saturating_add(image.bytes);
        chosen.push(image.file.as_str());
    }
    if room >= wanted { chosen } else { Vec::new() }
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
        assert_eq!(choose(&images, 100, 100), Vec::<&str>::new());
        assert_eq!(choose(&images, 0, 10), ["old"]);
        assert_eq!(choose(&images, 0, 11), ["old", "mid"]);
        assert_eq!(choose(&images, 0, 31), Vec::<&str>::new(), "it would not be enough");
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
            let gone: Vec<&Cached> = images.iter().filter(|image| chosen.contains(&image.file.as_str())).collect();
            prop_assert!(gone.iter().all(|image| !image.in_use));
            let freed: u64 = gone.iter().map(|image| image.bytes).sum();
            prop_assert!(chosen.is_empty() || (free < wanted && free + freed >= wanted));
        }
    }
}
