//! What an ordinary cloud image needs to know of its user: cloud-init's NoCloud seed, a small FAT volume labelled `CIDATA`
//! with `meta-data` and `user-data`, and `network-config` where there are two network cards. Images without cloud-init see a
//! second disk and leave it alone.
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
    /// The addresses of its network cards, if there is more than the one that cloud-init sets up by itself.
    pub cards: Option<[&'a str; 2]>,
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
        // The second half is for users that the image has already: of those, the first changes no password. With its own
        // name in its hosts file a guest need not ask a name server for it, which sudo does each time.
        format!(
            "#cloud-config\n\
             users:\n\
             - name: {user}\n  \
               sudo: \"ALL=(ALL) NOPASSWD:ALL\"\n  \
               lock_passwd: false\n  \
               plain_text_passwd: {password}\n{keys}\
             ssh_pwauth: true\n\
             manage_etc_hosts: localhost\n\
             chpasswd:\n  \
               expire: false\n  \
               users:\n  \
               - name: {user}\n    \
                 password: {password}\n    \
                 type: text\n"
        )
    }

    /// `network-config`: each card asks for an address. Nothing waits for that of the second, which may never come. The names
    /// are given, as not all that cloud-init writes for looks at the cards' addresses.
    fn network_config(&self) -> Option<String> {
        let [first, second] = self.cards?;
        let card = |name: &str, mac: &str, more: &str| {
            format!("  {name}:\n    match:\n      macaddress: \"{mac}\"\n    set-name: {name}\n    dhcp4: true\n{more}")
        };
        let (first, second) = (card("eth0", first, ""), card("eth1", second, "    optional: true\n"));
        Some(format!("version: 2\nethernets:\n{first}{second}"))
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
            let network = self.network_config().map(|text| ("network-config", text));
            for (name, text) in
                [("meta-data", self.meta_data()), ("user-data", self.user_data())].into_iter().chain(network)
            {
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

    /// The two files on every volume, read back.
    fn read(seed: &Seed<'_>) -> (String, String) {
        (file(seed, "meta-data").unwrap(), file(seed, "user-data").unwrap())
    }

    fn file(seed: &Seed<'_>, name: &str) -> Option<String> {
        let mut bytes = seed.volume().unwrap();
        let volume = FileSystem::new(Cursor::new(bytes.as_mut_slice()), FsOptions::new()).unwrap();
        assert_eq!(volume.volume_label_as_bytes(), b"CIDATA");
        let mut text = String::new();
        volume.root_dir().open_file(name).ok()?.read_to_string(&mut text).unwrap();
        Some(text)
    }

    #[test]
    fn the_exact_files() {
        let seed = Seed { id: id(), name: "build.7", user: "ann", password: "a\"b", keys: &[], cards: None };
        let (meta, user) = read(&seed);
        assert_eq!(meta, "instance-id: 00000000-0000-7000-8000-000000000001-2\nlocal-hostname: build-7\n");
        let expected = [
            "#cloud-config",
            "users:",
            "- name: \"ann\"",
            "  sudo: \"ALL=(ALL) NOPASSWD:ALL\"",
            "  lock_passwd: false",
            "  plain_text_passwd: \"a\\\"b\"",
            "ssh_pwauth: true",
            "manage_etc_hosts: localhost",
            "chpasswd:",
            "  expire: false",
            "  users:",
            "  - name: \"ann\"",
            "    password: \"a\\\"b\"",
            "    type: text",
            "",
        ];
        assert_eq!(user, expected.join("\n"));
        assert_eq!(file(&seed, "network-config"), None, "the image sets its one card up as it always does");
    }

    #[test]
    fn of_two_cards_both_ask_for_an_address_and_nothing_waits_for_the_second() {
        let seed = Seed {
            id: id(),
            name: "a",
            user: "u",
            password: "p",
            keys: &[],
            cards: Some(["52:54:00:00:00:01", "52:1:2:3:4:5"]),
        };
        let expected = [
            "version: 2",
            "ethernets:",
            "  eth0:",
            "    match:",
            "      macaddress: \"52:54:00:00:00:01\"",
            "    set-name: eth0",
            "    dhcp4: true",
            "  eth1:",
            "    match:",
            "      macaddress: \"52:1:2:3:4:5\"",
            "    set-name: eth1",
            "    dhcp4: true",
            "    optional: true",
            "",
        ];
        assert_eq!(file(&seed, "network-config").unwrap(), expected.join("\n"));
    }

    proptest! {
        #[test]
        fn whatever_user_and_password_are_they_are_read_back_as_they_are(
            name in "[A-Za-z0-9][A-Za-z0-9:_.-]{0,40}|true|No|y|12|1e3|0x1|null", user in "\\PC{1,20}|.{1,20}|true|null|~|- a|'|123", password in any::<String>(),
            keys in proptest::collection::vec(".{1,30}", 0..3),
        ) {
            let (meta, data) =
                read(&Seed { id: id(), name: &name, user: &user, password: &password, keys: &keys, cards: None });
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
