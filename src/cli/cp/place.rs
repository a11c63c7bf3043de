//! Whose path a path is: `VM:PATH` in a VM, anything else here. Pure.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::model::VmName;

/// One end of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Here(PathBuf),
    InVm(InVm),
}

/// A path in a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InVm {
    pub(super) vm: VmName,
    /// Never empty; relative to the user's home unless absolute.
    pub(super) path: String,
}

impl InVm {
    /// The last part of the path, if it names something.
    pub(super) fn file_name(&self) -> Option<&OsStr> {
        Path::new(&self.path).file_name()
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("a path is empty".to_owned());
        }
        if text.contains('\0') {
            return Err("a path contains a NUL character".to_owned());
        }
        match text.split_once(':') {
            Some((vm, path)) if !vm.is_empty() && !vm.contains('/') => {
                let vm = vm.parse().map_err(|error| format!("{error}; for a file here, write ./{text}"))?;
                // What a shell would do with it, and no shell sees.
                let path = match path {
                    "" | "~" | "~/" => ".",
                    path => path.strip_prefix("~/").unwrap_or(path),
                };
                Ok(Place::InVm(InVm { vm, path: path.to_owned() }))
            }
            _ => Ok(Place::Here(text.into())),
        }
    }
}

/// Which way a copy goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Into { from: PathBuf, to: InVm },
    OutOf { from: InVm, to: PathBuf },
}

/// Which way it goes from `from` to `to`.
pub(super) fn direction(from: &Place, to: &Place) -> Result<Direction, String> {
    match (from.clone(), to.clone()) {
        (Place::Here(from), Place::InVm(to)) => Ok(Direction::Into { from, to }),
        (Place::InVm(from), Place::Here(to)) => Ok(Direction::OutOf { from, to }),
        (Place::Here(_), Place::Here(_)) => {
            Err("neither path is in a VM; write VM:PATH for the one that is".to_owned())
        }
        (Place::InVm(_), Place::InVm(_)) => {
            Err("both paths are in VMs; copy to this machine first, and from here to the other".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_vm(vm: &str, path: &str) -> Place {
        Place::InVm(InVm { vm: vm.parse().unwrap(), path: path.to_owned() })
    }

    #[test]
    fn a_colon_before_the_first_slash_names_a_vm() {
        for (text, place) in [
            ("vm:/a:b", in_vm("vm", "/a:b")),
            ("vm:", in_vm("vm", ".")),
            ("vm:~", in_vm("vm", ".")),
            ("vm:~/x y", in_vm("vm", "x y")),
            ("vm:~x", in_vm("vm", "~x")),
            ("./a:b", Place::Here("./a:b".into())),
            ("/a:b", Place::Here("/a:b".into())),
            (":b", Place::Here(":b".into())),
            ("a", Place::Here("a".into())),
        ] {
            assert_eq!(text.parse(), Ok(place), "{text}");
        }
        assert!("a b:c".parse::<Place>().unwrap_err().contains("./a b:c"));
        assert!("".parse::<Place>().is_err() && "a\0".parse::<Place>().is_err());
    }

    #[test]
    fn one_end_is_here_and_the_other_in_a_vm() {
        let (here, there) = (Place::Here("a".into()), in_vm("vm", "b"));
        assert!(matches!(direction(&here, &there), Ok(Direction::Into { .. })));
        assert!(matches!(direction(&there, &here), Ok(Direction::OutOf { .. })));
        assert!(direction(&here, &here).is_err() && direction(&there, &there).is_err());
    }
}
