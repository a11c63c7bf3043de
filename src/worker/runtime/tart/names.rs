//! What the tools call a copy. Pure.

use crate::model::{CopyId, VmName};

/// What the tool calls a copy.
pub fn disk_name(name: &VmName, id: CopyId) -> String {
    format!("orchard-{name}-{id}")
}

/// The copy that one of the tool's names stands for; `None` for names that Orchard did not give.
pub fn parse_disk_name(text: &str) -> Option<(VmName, CopyId)> {
    const UUID_LEN: usize = 36;
    let (rest, attempt) = text.strip_prefix("orchard-")?.rsplit_once('-')?;
    let at = rest.len().checked_sub(UUID_LEN)?;
    let (name, uid) = (rest.get(..at)?.strip_suffix('-')?, rest.get(at..)?);
    let (name, id) = (name.parse().ok()?, CopyId { uid: uid.parse().ok()?, attempt: attempt.parse().ok()? });
    (disk_name(&name, id) == text).then_some((name, id))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_that_orchard_did_not_give_are_left_alone() {
        for foreign in [
            "",
            "ubuntu",
            "orchard-",
            "orchard-a-1",
            "orchard--00000000-0000-7000-8000-000000000001-0",
            "orchard-a-00000000-0000-7000-8000-000000000001-00",
            "orchard-a-00000000-0000-7000-8000-000000000001",
            "orchard-ää-0000",
        ] {
            assert_eq!(parse_disk_name(foreign), None, "{foreign:?}");
        }
    }

    proptest! {
        #[test]
        fn disk_names_are_read_back(name in "[A-Za-z0-9][A-Za-z0-9:_.-]{0,60}", uid: u128, attempt: u32) {
            let name: VmName = name.parse().unwrap();
            let id = CopyId { uid: uuid::Uuid::from_u128(uid).to_string().parse().unwrap(), attempt };
            prop_assert_eq!(parse_disk_name(&disk_name(&name, id)), Some((name, id)));
        }

        #[test]
        fn no_text_upsets_the_parser(text in "(orchard-)?.*") {
            let _ = parse_disk_name(&text);
        }
    }
}
