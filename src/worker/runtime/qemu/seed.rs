//! What an ordinary cloud image needs to know of its user: cloud-init's NoCloud seed, a small FAT volume labelled `CIDATA` with
//! `meta-data` and `user-data`. Images without cloud-init see a second disk and leave it alone.
//!
//! No text of a user is ever written as it is: each is a YAML string in double quotes, of printable ASCII, with escapes for
//! all else. So none ends its string, and none holds a character that cloud-init's parser refuses.

use std::fmt::Write as _;
use std::io::{self, Cursor, Write as _};

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions, format_volume};

use super::args;
use crate::model::CopyId;

/// What the volume tells.
#[derive(Clone, Debug)]
pub struct Seed<'a> {
    /// Another one makes cloud-init set the guest up once more.
    pub id: CopyId,
    /// The VM's name.
    pub name: &'a str,
    /// Who logs in; made if the image does not have that user.
    pub user: &'a str,
    /// That user's password.
    pub password: &'a str,
    /// Public keys that let that user in, too.
    pub keys: &'a [String],
}

/// The smallest volume that a FAT file system is commonly made on.
const SIZE: usize = 1 << 20;
/// Names that YAML takes for something else.
const WORDS: &[&str] = &["true", "false", "yes", "no", "on", "off", "y", "n", "null"];
/// cloud-init looks for this label in either case; FAT has but one.
const LABEL: [u8; 11] = *b"CIDATA     ";

impl Seed<'_> {
    /// `meta-data`.
    fn meta_data(&self) -> String {
        let host = args::host_name(self.name);
        // Plain where that cannot be taken for a number or a truth value: small readers know no quotes.
        let word = WORDS.iter().any(|word| host.eq_ignore_ascii_case(word));
        let plain = !word && host.starts_with(|c: char| c.is_ascii_alphabetic());
        let host = if plain { host } else { quoted(&host) };
        format!("instance-id: {}\nlocal-hostname: {host}\n", self.id)
    }

    /// `user-data`.
    fn user_data(&self) -> String {
        let (user, password) = (quoted(self.user), quoted(self.password));
        let keys: String = self.keys.iter().map(|key| format!("  - {}\n", quoted(key))).collect();
        let keys = if keys.is_empty() { keys } else { format!("  ssh_authorized_keys:\n{keys}") };
        // The second half is for users that the image has already: of those, the first changes no password.
        format!(
            "#cloud-config\n\
             users:\n\
             - name: {user}\n  \
               sudo: \"ALL=(ALL) NOPASSWD:ALL\"\n  \
               lock_passwd: false\n  \
               plain_text_passwd: {password}\n{keys}\
             ssh_pwauth: true\n\
             chpasswd:\n  \
               expire: false\n  \
               users:\n  \
               - name: {user}\n    \
                 password: {password}\n    \
                 type: text\n"
        )
    }

    /// The volume's bytes.
    ///
    /// # Errors
    /// None that is known; the file system's writer may have some.
    pub fn volume(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; SIZE];
        let options = FormatVolumeOptions::new().volume_label(LABEL);
        format_volume(Cursor::new(bytes.as_mut_slice()), options)?;
        {
            let volume = FileSystem::new(Cursor::new(bytes.as_mut_slice()), FsOptions::new())?;
            for (name, text) in [("meta-data", self.meta_data()), ("user-data", self.user_data())] {
                volume.root_dir().create_file(name)?.write_all(text.as_bytes())?;
            }
            volume.unmount()?;
        }
        Ok(bytes)
    }
}

/// A YAML string.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        let code = u32::from(c);
        let _ = match c {
            '"' | '\\' => write!(out, "\\{c}"),
            ' '..='~' => write!(out, "{c}"),
            _ if code <= 0xff => write!(out, "\\x{code:02x}"),
            _ if code <= 0xffff => write!(out, "\\u{code:04x}"),
            _ => write!(out, "\\U{code:08x}"),
        };
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct MetaData {
        #[serde(rename = "instance-id")]
        instance_id: String,
        #[serde(rename = "local-hostname")]
        local_hostname: String,
    }

    #[derive(Deserialize)]
    struct UserData {
        users: Vec<User>,
        ssh_pwauth: bool,
        chpasswd: ChPasswd,
    }

    #[derive(Deserialize)]
    struct User {
        name: String,
        plain_text_passwd: String,
        lock_passwd: bool,
        sudo: String,
        #[serde(default)]
        ssh_authorized_keys: Vec<String>,
    }

    #[derive(Deserialize)]
    struct ChPasswd {
        expire: bool,
        users: Vec<Login>,
    }

    #[derive(Deserialize)]
    struct Login {
        name: String,
        password: String,
        #[serde(rename = "type")]
        kind: String,
    }

    fn id() -> CopyId {
        CopyId { uid: "00000000-0000-7000-8000-000000000001".parse().unwrap(), attempt: 2 }
    }

    /// The files on a volume, read back.
    fn read(seed: &Seed<'_>) -> (String, String) {
        let mut bytes = seed.volume().unwrap();
        let volume = FileSystem::new(Cursor::new(bytes.as_mut_slice()), FsOptions::new()).unwrap();
        assert_eq!(volume.volume_label_as_bytes(), b"CIDATA");
        let read = |name: &str| {
            let mut text = String::new();
            volume.root_dir().open_file(name).unwrap().read_to_string(&mut text).unwrap();
            text
        };
        (read("meta-data"), read("user-data"))
    }

    #[test]
    fn the_exact_files() {
        let (meta, user) = read(&Seed { id: id(), name: "build.7", user: "ann", password: "a\"b", keys: &[] });
        assert_eq!(meta, "instance-id: 00000000-0000-7000-8000-000000000001-2\nlocal-hostname: build-7\n");
        let expected = [
            "#cloud-config",
            "users:",
            "- name: \"ann\"",
            "  sudo: \"ALL=(ALL) NOPASSWD:ALL\"",
            "  lock_passwd: false",
            "  plain_text_passwd: \"a\\\"b\"",
            "ssh_pwauth: true",
            "chpasswd:",
            "  expire: false",
            "  users:",
            "  - name: \"ann\"",
            "    password: \"a\\\"b\"",
            "    type: text",
            "",
        ];
        assert_eq!(user, expected.join("\n"));
    }

    proptest! {
        #[test]
        fn whatever_user_and_password_are_they_are_read_back_as_they_are(
            name in "[A-Za-z0-9][A-Za-z0-9:_.-]{0,40}|true|No|y|12|1e3|0x1|null", user in "\\PC{1,20}|.{1,20}|true|null|~|- a|'|123", password in any::<String>(),
            keys in proptest::collection::vec(".{1,30}", 0..3),
        ) {
            let (meta, data) = read(&Seed { id: id(), name: &name, user: &user, password: &password, keys: &keys });
            prop_assert!(data.starts_with("#cloud-config\n"));
            prop_assert!(data.bytes().all(|byte| matches!(byte, b'\n' | b' '..=b'~')));
            let meta: MetaData = serde_saphyr::from_str(&meta).unwrap();
            prop_assert_eq!((meta.instance_id, meta.local_hostname), (id().to_string(), args::host_name(&name)));
            let data: UserData = serde_saphyr::from_str(&data).unwrap();
            let [made] = &data.users[..] else { panic!("one user") };
            prop_assert_eq!((&made.name, &made.plain_text_passwd), (&user, &password));
            prop_assert_eq!(&made.ssh_authorized_keys, &keys);
            prop_assert!(!made.lock_passwd && data.ssh_pwauth && !data.chpasswd.expire && made.sudo.starts_with("ALL="));
            let [login] = &data.chpasswd.users[..] else { panic!("one user") };
            prop_assert_eq!((&login.name, &login.password, login.kind.as_str()), (&user, &password, "text"));
        }
    }
}
