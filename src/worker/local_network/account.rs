//! The account as which a worker that was started as root goes on: asked of the system's own tools, as accounts of a Mac
//! stand in no file. What they print is read by pure functions.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::worker::runtime::tool;

/// What a tool that looks up an account may take: a directory service may be far.
const LIMIT: Duration = Duration::from_secs(20);

/// An account of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// What it is called.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// That of its group.
    pub gid: u32,
    /// Its home folder.
    pub home: PathBuf,
}

impl Account {
    /// The account of that name.
    ///
    /// # Errors
    /// For people: it is no name, there is none, or it is root.
    pub async fn of(name: &str) -> Result<Self, String> {
        let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.starts_with('-') || !name.chars().all(valid) {
            return Err(format!("{name:?} is not the name of a user"));
        }
        let ask = async |call: &[String]| -> Result<String, String> {
            let (program, args) = call.split_first().ok_or_else(|| "nothing to ask".to_owned())?;
            let said = tool::run(Path::new(program), args, None, LIMIT).await;
            said.map_err(|error| format!("cannot find out about user {name}: {error}"))
        };
        let [uid, gid, home] = questions(name, cfg!(target_os = "macos"));
        let odd =
            |what: &str, said: &str| format!("cannot find out the {what} of user {name}; the system says {said:?}");
        let uid_said = ask(&uid).await?;
        let gid_said = ask(&gid).await?;
        let home_said = ask(&home).await?;
        let uid = number(&uid_said).ok_or_else(|| odd("number", &uid_said))?;
        let gid = number(&gid_said).ok_or_else(|| odd("group", &gid_said))?;
        let home = home_of(&home_said).ok_or_else(|| odd("home folder", &home_said))?;
        if uid == 0 {
            return Err(format!("user {name} is root itself; give one that has fewer rights"));
        }
        Ok(Self { name: name.to_owned(), uid, gid, home })
    }
}

/// How its number, its group's and its home folder are asked for.
fn questions(name: &str, macos: bool) -> [Vec<String>; 3] {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let user = format!("/Users/{name}");
    let home = match macos {
        true => words(&["/usr/bin/dscl", ".", "-read", &user, "NFSHomeDirectory"]),
        false => words(&["getent", "passwd", name]),
    };
    [words(&["id", "-u", name]), words(&["id", "-g", name]), home]
}

fn number(said: &str) -> Option<u32> {
    said.trim().parse().ok()
}

/// The home folder, out of a line of `passwd` or what `dscl` says.
fn home_of(said: &str) -> Option<PathBuf> {
    let said = said.trim();
    let path = match said.strip_prefix("NFSHomeDirectory:") {
        Some(path) => path.trim(),
        None => said.split(':').nth(5)?,
    };
    // Whatever comes after it on further lines is another place of the same.
    path.lines().next().map(str::trim).filter(|path| path.starts_with('/')).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_systems_answers_are_read() {
        assert_eq!(home_of("NFSHomeDirectory: /Users/ann\n"), Some("/Users/ann".into()));
        assert_eq!(home_of("NFSHomeDirectory:\n /Users/ann b\n"), Some("/Users/ann b".into()));
        assert_eq!(home_of("ann:x:1000:1000:Ann,,,:/home/ann:/bin/sh\n"), Some("/home/ann".into()));
        for odd in ["", "x", "ann:x:1:1", "NFSHomeDirectory: nowhere", "a:b:c:d:e:relative:g"] {
            assert_eq!(home_of(odd), None, "{odd:?}");
        }
        assert_eq!((number("501\n"), number("-1"), number("nobody")), (Some(501), None, None));
    }

    #[test]
    fn each_system_is_asked_its_way() {
        let typed = |macos| questions("ann", macos).map(|call| call.join(" "));
        assert_eq!(typed(true), ["id -u ann", "id -g ann", "/usr/bin/dscl . -read /Users/ann NFSHomeDirectory"]);
        assert_eq!(typed(false)[2], "getent passwd ann");
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn accounts_are_found_and_root_is_none_to_go_on_as() {
        let nobody = Account::of("nobody").await.unwrap();
        assert!(nobody.uid > 0 && nobody.home.is_absolute(), "{nobody:?}");
        assert!(Account::of("root").await.unwrap_err().contains("is root itself"));
        assert!(Account::of("no-such-user").await.unwrap_err().contains("no-such-user"));
        for odd in ["", "-u", "a b", "../x"] {
            assert!(Account::of(odd).await.unwrap_err().contains("is not the name"), "{odd:?}");
        }
    }
}
