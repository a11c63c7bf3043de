//! How long a payload would be, without making it. For whoever bounds what others may have stored or sent.

use std::io;

use serde::Serialize;

/// The length of `message` in bytes, as [`super::message::encode`] makes it; [`usize::MAX`] for what cannot be encoded,
/// which none of the messages is.
pub fn encoded_len<T: Serialize>(message: &T) -> usize {
    let mut counted = Counted(0);
    match rmp_serde::encode::write_named(&mut counted, message) {
        Ok(()) => counted.0,
        Err(_) => usize::MAX,
    }
}

/// Takes everything and keeps how much that was.
struct Counted(usize);

impl io::Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.saturating_add(bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bus::message::encode;
    use crate::model::vm::VmSpec;

    proptest! {
        #[test]
        fn it_is_the_length_of_what_is_sent(image in ".{0,300}", cpu: u64, labels in prop::collection::btree_map(".{0,40}", ".{0,40}", 0..20)) {
            let spec = VmSpec { image, cpu, labels, ..VmSpec::default() };
            prop_assert_eq!(encoded_len(&spec), encode(&spec).unwrap().len());
        }
    }
}
