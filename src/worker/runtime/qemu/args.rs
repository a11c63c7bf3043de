//! The command lines of `qemu-system-…` and `qemu-img`, and what makes up their words. Pure; called by `mod.rs`.
//!
//! QEMU runs in the VM's folder, so every file is named by a short relative name (socket paths are limited to some 100
//! bytes). No text of a user becomes an option or part of a comma list: names and ids are the only such text, their
//! alphabet holds no comma, and they never stand at the start of a word.

use std::fmt;
use std::str::FromStr;

use super::folder::{CONSOLE_LOG, DISK, EFI_VARS, PID_FILE, QMP_SOCKET, SEED, VNC_SOCKET};
use crate::model::CopyId;
use crate::model::settings::HostDir;
use crate::model::vm::Arch;

/// How guest instructions are executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Accel {
    /// Linux's hypervisor.
    Kvm,
    /// macOS's hypervisor.
    Hvf,
    /// Translation in software: works everywhere, some ten times slower.
    Tcg,
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Accel::Kvm => "kvm",
            Accel::Hvf => "hvf",
            Accel::Tcg => "tcg",
        })
    }
}

impl FromStr for Accel {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "kvm" => Ok(Accel::Kvm),
            "hvf" => Ok(Accel::Hvf),
            "tcg" => Ok(Accel::Tcg),
            _ => Err(format!("{text:?} is not an accelerator: give kvm, hvf, tcg or auto")),
        }
    }
}

/// What a VM's command line depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameters<'a> {
    /// Host name of the guest and title of the process.
    pub name: &'a str,
    /// Becomes the guest's instance id: a new copy is a new instance.
    pub id: CopyId,
    /// Cores.
    pub cpu: u64,
    /// MiB.
    pub memory: u64,
    /// `52:54:00:…`
    pub mac: &'a str,
    /// The same of a second card, which QEMU gets as its standard input; see bridge.rs.
    pub bridged: Option<&'a str>,
    /// Guest and host architecture.
    pub arch: Arch,
    /// See [`Accel`].
    pub accel: Accel,
    /// UEFI firmware in the folder's parent chain or the system; only arm64 needs one.
    pub firmware: Option<&'a str>,
    /// UEFI for a machine that has none of its own; its variables are in [`EFI_VARS`].
    pub uefi: Option<&'a str>,
    /// Folders of the host that the guest sees, each by its name as a 9p mount tag.
    pub host_dirs: &'a [HostDir],
    /// A serial number of its own in place of what tells images with cloud-init where their volume is; they find it by its
    /// label, too.
    pub random_serial: bool,
    /// Whether this QEMU was built with seccomp.
    pub sandbox: bool,
}

/// Keeps the translation cache small: the default takes 50 to 100 MB more per idle guest and is no faster.
const TCG: &str = "tcg,tb-size=32";

/// Shuts doors that this command line never needs.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// The words after `qemu-system-…`.
pub fn run(machine: &Parameters<'_>) -> Vec<String> {
    let mut args: Vec<String> = Vec::with_capacity(48);
    let mut add = |option: &str, value: String| args.extend([option.to_owned(), value]);
    add("-name", format!("guest={}", machine.name));
    add("-display", "none".to_owned());
    match machine.arch {
        Arch::Amd64 => add("-machine", "q35".to_owned()),
        Arch::Arm64 | Arch::Unknown => add("-machine", "virt,gic-version=max".to_owned()),
    }
    let (accel, cpu) = match machine.accel {
        Accel::Tcg => (TCG.to_owned(), "max"),
        other => (other.to_string(), "host"),
    };
    add("-accel", accel);
    add("-cpu", cpu.to_owned());
    add("-smp", machine.cpu.to_string());
    add("-m", format!("{}M", machine.memory));
    if let Some(firmware) = machine.firmware {
        add("-bios", firmware.to_owned());
    }
    if let Some(code) = machine.uefi {
        add("-drive", format!("if=pflash,unit=0,format=raw,readonly=on,file={code}"));
        add("-drive", format!("if=pflash,unit=1,format=raw,file={EFI_VARS}"));
    }
    add("-drive", format!("if=none,id=disk0,file={DISK},format=qcow2,discard=unmap,cache=writeback"));
    add("-device", "virtio-blk-pci,drive=disk0,bootindex=1".to_owned());
    add("-drive", format!("if=none,id=seed,file={SEED},format=raw,readonly=on"));
    add("-device", "virtio-blk-pci,drive=seed".to_owned());
    // Shut, it would still name itself as the way out for IPv6.
    let shut = if machine.bridged.is_some() { ",restrict=on,ipv6=off" } else { "" };
    add("-netdev", format!("user,id={NETDEV}{shut}"));
    add("-device", format!("virtio-net-pci,netdev={NETDEV},mac={},romfile=", machine.mac));
    if let Some(mac) = machine.bridged {
        add("-netdev", format!("tap,id={BRIDGED},fd=0"));
        add("-device", format!("virtio-net-pci,netdev={BRIDGED},mac={mac},romfile="));
    }
    add("-device", "virtio-rng-pci".to_owned());
    match machine.arch {
        Arch::Amd64 => add("-vga", "std".to_owned()),
        Arch::Arm64 | Arch::Unknown => add("-device", "ramfb".to_owned()),
    }
    for (number, dir) in machine.host_dirs.iter().enumerate() {
        // The path is the one text of a user here that may hold commas; QEMU reads two as one.
        let (path, name) = (dir.path.replace(',', ",,"), &dir.name);
        let access = if dir.ro { ",readonly=on" } else { "" };
        let share =
            format!("local,id=dir{number},path={path},mount_tag={name},security_model=none,multidevs=remap{access}");
        add("-virtfs", share);
    }
    add("-vnc", format!("unix:{VNC_SOCKET}"));
    add(
        "-smbios",
        match machine.random_serial {
            true => format!("type=1,serial={},uuid={}", serial_number(machine.id), machine.id.uid),
            false => format!("type=1,serial=ds=nocloud;h={};i={}", host_name(machine.name), machine.id),
        },
    );
    add("-chardev", format!("file,id=console,path={CONSOLE_LOG},append=on"));
    add("-serial", "chardev:console".to_owned());
    add("-qmp", format!("unix:{QMP_SOCKET},server=on,wait=off"));
    add("-pidfile", PID_FILE.to_owned());
    if machine.sandbox {
        add("-sandbox", SANDBOX.to_owned());
    }
    args.extend(["-nodefaults".to_owned(), "-no-user-config".to_owned()]);
    args
}

/// The words of a run that is to go on where one with `args` was suspended: on exactly that machine, whose versioned name is
/// `machine`, and waiting for its memory.
pub fn resume(args: &[String], machine: &str) -> Vec<String> {
    let mut resumed = Vec::with_capacity(args.len() + 2);
    let mut words = args.iter();
    while let Some(word) = words.next() {
        resumed.push(word.clone());
        if word == "-machine"
            && let Some(value) = words.next()
        {
            let options = value.split_once(',').map(|(_, options)| format!(",{options}")).unwrap_or_default();
            resumed.push(format!("{machine}{options}"));
        }
    }
    resumed.extend(["-incoming".to_owned(), "defer".to_owned()]);
    resumed
}

/// The network device's name, in the command line and in forwards.
pub const NETDEV: &str = "net0";
/// That of the second card.
const BRIDGED: &str = "net1";

/// The words after `qemu-img` that make a VM's disk on top of an image. `base` is relative to the VM's folder, where the
/// command runs. `size` in bytes; none = the image's own.
pub fn make_overlay(base: &str, format: &str, size: Option<u64>) -> Vec<String> {
    let mut args: Vec<String> =
        ["create", "-q", "-f", "qcow2", "-F", format, "-b", base, DISK].map(str::to_owned).into();
    args.extend(size.map(|bytes| bytes.to_string()));
    args
}

/// A VM name as a guest's host name: letters, digits and hyphens, at most 63 of them.
pub fn host_name(name: &str) -> String {
    let label: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
    label.trim_matches('-').to_owned()
}

/// A network address of QEMU's own range, the same for a copy at each start and different between copies.
pub fn mac_address(id: CopyId) -> String {
    use sha2::Digest;
    let digest = sha2::Sha256::digest(id.to_string().as_bytes());
    let tail: Vec<String> = digest.iter().take(3).map(|byte| format!("{byte:02x}")).collect();
    format!("52:54:00:{}", tail.join(":"))
}

/// The address of a copy's card on a bridge. Others share that network, so more of it is the copy's own; the first byte says
/// that nobody gave it out, and that it stands for one card.
pub fn bridged_mac_address(id: CopyId) -> String {
    use sha2::Digest;
    let digest = sha2::Sha256::digest(format!("bridged card of {id}").as_bytes());
    let tail: Vec<String> = digest.iter().take(5).map(|byte| format!("{byte:02x}")).collect();
    format!("52:{}", tail.join(":"))
}

/// A serial number, the same for a copy at each start and different between copies.
fn serial_number(id: CopyId) -> String {
    use sha2::Digest;
    let digest = sha2::Sha256::digest(format!("serial number of {id}").as_bytes());
    digest.iter().take(6).map(|byte| format!("{byte:02X}")).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::VmName;

    fn id() -> CopyId {
        CopyId { uid: "00000000-0000-7000-8000-000000000001".parse().unwrap(), attempt: 2 }
    }

    fn machine(accel: Accel) -> Parameters<'static> {
        Parameters {
            name: "vm.1",
            id: id(),
            cpu: 2,
            memory: 128,
            mac: "52:54:00:01:02:03",
            bridged: None,
            arch: Arch::Amd64,
            accel,
            firmware: None,
            uefi: None,
            host_dirs: &[],
            random_serial: false,
            sandbox: true,
        }
    }

    #[test]
    fn folders_are_shared_by_name_and_no_path_adds_an_option() {
        let dirs: Vec<HostDir> = ["a:/srv/x,readonly=off:ro", "b:/srv/y"].map(|dir| dir.parse().unwrap()).into();
        let args = run(&Parameters { host_dirs: &dirs, ..machine(Accel::Tcg) });
        let shares: Vec<&str> = args
            .iter()
            .zip(&args[1..])
            .filter(|(option, _)| *option == "-virtfs")
            .map(|(_, value)| value.as_str())
            .collect();
        assert_eq!(
            shares,
            [
                "local,id=dir0,path=/srv/x,,readonly=off,mount_tag=a,security_model=none,multidevs=remap,readonly=on",
                "local,id=dir1,path=/srv/y,mount_tag=b,security_model=none,multidevs=remap",
            ]
        );
    }

    #[test]
    fn the_exact_command_line() {
        let expected = [
            "-name guest=vm.1 -display none -machine q35 -accel tcg,tb-size=32 -cpu max -smp 2 -m 128M",
            "-drive if=none,id=disk0,file=disk.qcow2,format=qcow2,discard=unmap,cache=writeback",
            "-device virtio-blk-pci,drive=disk0,bootindex=1",
            "-drive if=none,id=seed,file=seed.img,format=raw,readonly=on -device virtio-blk-pci,drive=seed",
            "-netdev user,id=net0",
            "-device virtio-net-pci,netdev=net0,mac=52:54:00:01:02:03,romfile= -device virtio-rng-pci -vga std",
            "-vnc unix:vnc.sock",
            "-smbios type=1,serial=ds=nocloud;h=vm-1;i=00000000-0000-7000-8000-000000000001-2",
            "-chardev file,id=console,path=console.log,append=on -serial chardev:console",
            "-qmp unix:qmp.sock,server=on,wait=off -pidfile qemu.pid",
            "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
            "-nodefaults -no-user-config",
        ];
        assert_eq!(run(&machine(Accel::Tcg)).join(" "), expected.join(" "));
    }

    #[test]
    fn a_guest_on_a_bridge_has_a_second_card_and_no_way_out_through_the_first() {
        let line = run(&Parameters { bridged: Some("52:01:02:03:04:05"), ..machine(Accel::Tcg) }).join(" ");
        let part = "-netdev user,id=net0,restrict=on,ipv6=off -device virtio-net-pci,netdev=net0,mac=52:54:00:01:02:03,romfile= \
            -netdev tap,id=net1,fd=0 -device virtio-net-pci,netdev=net1,mac=52:01:02:03:04:05,romfile= -device virtio-rng";
        assert!(line.contains(part), "{line}");
    }

    #[test]
    fn an_arm64_guest_gets_a_machine_firmware_and_screen_of_its_kind() {
        let firmware = Some("/usr/share/AAVMF/AAVMF_CODE.fd");
        let line = run(&Parameters { arch: Arch::Arm64, firmware, ..machine(Accel::Hvf) }).join(" ");
        for part in [
            "-machine virt,gic-version=max -accel hvf -cpu host -smp 2 -m 128M -bios /usr/share/AAVMF/AAVMF_CODE.fd",
            "-device virtio-blk-pci,drive=disk0,bootindex=1",
            "-device ramfb",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert!(!line.contains("-vga") && !line.contains("q35"), "{line}");
    }

    #[test]
    fn uefi_gets_variables_of_its_own() {
        let line = run(&Parameters { uefi: Some("/f/OVMF_CODE.fd"), ..machine(Accel::Tcg) }).join(" ");
        let part = "-drive if=pflash,unit=0,format=raw,readonly=on,file=/f/OVMF_CODE.fd \
            -drive if=pflash,unit=1,format=raw,file=efi-vars.fd -drive if=none,id=disk0";
        assert!(line.contains(part), "{line}");
    }

    #[test]
    fn a_suspended_guest_goes_on_with_the_same_words_on_the_same_version_of_its_machine() {
        let before = run(&Parameters { arch: Arch::Arm64, ..machine(Accel::Tcg) });
        let after = resume(&before, "virt-7.2");
        let changed: Vec<(&String, &String)> = before.iter().zip(&after).filter(|(a, b)| a != b).collect();
        assert_eq!(changed, [(&"virt,gic-version=max".to_owned(), &"virt-7.2,gic-version=max".to_owned())]);
        assert_eq!(after[before.len()..], ["-incoming", "defer"]);
    }

    #[test]
    fn a_serial_number_is_a_copys_own_and_stays_its_own() {
        let of = |id| {
            let args = run(&Parameters { id, random_serial: true, ..machine(Accel::Tcg) });
            args[args.iter().position(|word| word == "-smbios").unwrap() + 1].clone()
        };
        let serial = of(id());
        assert!(serial.ends_with(",uuid=00000000-0000-7000-8000-000000000001"), "{serial}");
        assert_eq!(serial, of(id()));
        assert_ne!(serial, of(CopyId { attempt: 3, ..id() }));
    }

    #[test]
    fn a_hypervisor_gets_the_hosts_processor() {
        let line = run(&machine(Accel::Kvm)).join(" ");
        assert!(line.contains("-accel kvm -cpu host"), "{line}");
    }

    #[test]
    fn the_overlay_names_format_and_size() {
        let line = make_overlay("../../images/sha256-ab", "raw", Some(512)).join(" ");
        assert_eq!(line, "create -q -f qcow2 -F raw -b ../../images/sha256-ab disk.qcow2 512");
    }

    #[test]
    fn copies_have_addresses_of_their_own() {
        let other = CopyId { attempt: 3, ..id() };
        assert_ne!(mac_address(id()), mac_address(other));
        assert_eq!(mac_address(id()), mac_address(id()));
        assert_ne!(bridged_mac_address(id()), bridged_mac_address(other));
        assert_eq!(bridged_mac_address(id()).len(), mac_address(id()).len());
    }

    proptest! {
        #[test]
        fn no_vm_name_adds_an_option_or_a_list_element(name in "[A-Za-z0-9][A-Za-z0-9:_.-]{0,127}") {
            name.parse::<VmName>().unwrap();
            let plain = run(&machine(Accel::Tcg));
            let named = run(&Parameters { name: &name, ..machine(Accel::Tcg) });
            prop_assert_eq!(plain.len(), named.len());
            for (a, b) in plain.iter().zip(&named) {
                prop_assert_eq!(a.matches(',').count(), b.matches(',').count());
                prop_assert_eq!(a.starts_with('-'), b.starts_with('-'));
            }
        }
    }
}
