//! Which wishes of a specification a runtime can fulfil. Asked by the command line when the runtime is named, by the
//! controller for each VM that names one, and by the runtime itself before it makes anything. Pure.

use core::net::IpAddr;

use super::error::{ApiError, ErrorCode};
use super::vm::{Firmware, RuntimeKind, VmSpec};

/// The longest name of an interface, generously: macOS shows them by names such as "Wi-Fi".
const MAX_INTERFACE: usize = 64;

/// Whether `kind` can run a VM as `spec` says, as far as that can be told without looking at the image.
///
/// # Errors
/// [`ErrorCode::Invalid`], with the field, the runtime and what to do.
pub fn check(spec: &VmSpec, kind: RuntimeKind) -> Result<(), ApiError> {
    let refuse = |what: String| Err(ApiError::new(ErrorCode::Invalid, what));
    check_network(spec)?;
    if let Some((field, instead)) = impossible(spec, kind) {
        return refuse(format!("runtime {kind} has no {field}; {instead}"));
    }
    if kind == RuntimeKind::Tart && spec.suspendable && !spec.host_dirs.is_empty() {
        let what = "runtime tart cannot suspend a VM that sees host directories (suspendable, hostDirs); leave one of them out";
        return refuse(what.to_owned());
    }
    Ok(())
}

/// The first wish that the runtime cannot fulfil, and what to do about it.
fn impossible(spec: &VmSpec, kind: RuntimeKind) -> Option<(&'static str, &'static str)> {
    const ONLY_TART: &str = "leave it out, or give --runtime tart";
    const NOT_VETU: &str = "leave it out, or give --runtime tart or qemu";
    let (tart, vetu) = (kind == RuntimeKind::Tart, kind == RuntimeKind::Vetu);
    const ONLY_QEMU: &str = "leave it out, or give --runtime qemu";
    let anything = tart || kind == RuntimeKind::Synthetic;
    let qemu = kind == RuntimeKind::Qemu || kind == RuntimeKind::Synthetic;
    let table = [
        ("Softnet isolation (netSoftnetAllow)", !spec.net_softnet_allow.is_empty(), anything, ONLY_TART),
        ("Softnet isolation (netSoftnetBlock)", !spec.net_softnet_block.is_empty(), anything, ONLY_TART),
        ("Softnet isolation (netSoftnet)", spec.net_softnet, anything, ONLY_TART),
        ("host directories (hostDirs)", !spec.host_dirs.is_empty(), !vetu, NOT_VETU),
        ("suspending (suspendable)", spec.suspendable, !vetu, NOT_VETU),
        ("bridged network (net-bridged)", spec.net_bridged.is_some(), !vetu, NOT_VETU),
        ("nested virtualisation (nested)", spec.nested, !vetu, NOT_VETU),
        ("serial numbers (randomSerial)", spec.random_serial, !vetu, NOT_VETU),
        ("choice of firmware (firmware)", spec.firmware != Firmware::Default, qemu, ONLY_QEMU),
        ("keys for the guest (sshKeys)", !spec.ssh_keys.is_empty(), qemu, ONLY_QEMU),
    ];
    let missing = table.into_iter().find(|(_, wished, can, _)| *wished && !can);
    missing.map(|(field, _, _, instead)| (field, instead))
}

fn check_network(spec: &VmSpec) -> Result<(), ApiError> {
    let refuse = |what: String| Err(ApiError::new(ErrorCode::Invalid, what));
    if let Some(interface) = &spec.net_bridged {
        let wrong = interface.trim().is_empty() || interface.chars().any(char::is_control);
        if wrong || interface.len() > MAX_INTERFACE {
            return refuse(format!("{interface:?} is not the name of a network interface (net-bridged)"));
        }
        if spec.softnet() {
            let what = "a VM's network is either isolated by Softnet (netSoftnet…) or bridged (net-bridged), not both";
            return refuse(what.to_owned());
        }
    }
    let lists = [("netSoftnetAllow", &spec.net_softnet_allow), ("netSoftnetBlock", &spec.net_softnet_block)];
    for (field, networks) in lists {
        if let Some(wrong) = networks.iter().find(|text| !is_network(text)) {
            return refuse(format!("{wrong:?} is not a network such as 192.168.0.0/24 or 10.0.0.1/32 ({field})"));
        }
    }
    Ok(())
}

/// Whether it is an address with the length of a prefix.
fn is_network(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    let digits = !length.is_empty() && length.len() <= 3 && length.bytes().all(|byte| byte.is_ascii_digit());
    match address.parse() {
        Ok(IpAddr::V4(_)) => digits && length.parse().is_ok_and(|bits: u16| bits <= 32),
        Ok(IpAddr::V6(_)) => digits && length.parse().is_ok_and(|bits: u16| bits <= 128),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(spec: &VmSpec, kind: RuntimeKind) -> String {
        check(spec, kind).expect_err("it is refused").message
    }

    #[test]
    fn a_wish_that_a_runtime_cannot_fulfil_is_refused_by_its_name() {
        let dir = "a:/b".parse().unwrap();
        let any = VmSpec::default;
        let network = vec!["10.0.0.0/8".to_owned()];
        let wishes = [
            ("netSoftnet", VmSpec { net_softnet: true, ..any() }),
            ("netSoftnetAllow", VmSpec { net_softnet_allow: network.clone(), ..any() }),
            ("netSoftnetBlock", VmSpec { net_softnet_block: network, ..any() }),
            ("hostDirs", VmSpec { host_dirs: vec![dir], ..any() }),
            ("suspendable", VmSpec { suspendable: true, ..any() }),
            ("net-bridged", VmSpec { net_bridged: Some("en0".into()), ..any() }),
            ("nested", VmSpec { nested: true, ..any() }),
            ("randomSerial", VmSpec { random_serial: true, ..any() }),
        ];
        for (field, spec) in wishes {
            check(&spec, RuntimeKind::Tart).unwrap();
            check(&spec, RuntimeKind::Synthetic).unwrap();
            let why = refused(&spec, RuntimeKind::Vetu);
            assert!(why.contains("vetu") && why.contains(&format!("({field})")), "{why}");
            let also_qemu = ["hostDirs", "suspendable", "net-bridged", "nested", "randomSerial"].contains(&field);
            assert_eq!(check(&spec, RuntimeKind::Qemu).is_ok(), also_qemu, "{field}");
        }
        let of_qemu = [
            ("firmware", VmSpec { firmware: Firmware::Uefi, ..any() }),
            ("sshKeys", VmSpec { ssh_keys: vec!["ssh-ed25519 A".into()], ..any() }),
        ];
        for (field, spec) in of_qemu {
            check(&spec, RuntimeKind::Qemu).unwrap();
            assert!(refused(&spec, RuntimeKind::Tart).contains(field));
        }
        check(&any(), RuntimeKind::Vetu).unwrap();
    }

    #[test]
    fn wishes_that_exclude_each_other_are_refused() {
        let both = VmSpec { net_softnet: true, net_bridged: Some("en0".into()), ..VmSpec::default() };
        assert!(refused(&both, RuntimeKind::Tart).contains("not both"));
        let both = VmSpec { suspendable: true, host_dirs: vec!["a:/b".parse().unwrap()], ..VmSpec::default() };
        assert!(refused(&both, RuntimeKind::Tart).contains("leave one"));
        check(&both, RuntimeKind::Qemu).unwrap();
    }

    #[test]
    fn what_is_no_network_or_interface_is_refused() {
        for good in ["0.0.0.0/0", "192.168.1.0/24", "10.1.2.3/32", "fd00::/8"] {
            assert!(is_network(good), "{good}");
        }
        for bad in ["", "x", "10.0.0.1", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "--help", "10.0.0.0/8,1.1.1.1/32"] {
            let spec = VmSpec { net_softnet_allow: vec![bad.into()], ..VmSpec::default() };
            assert!(refused(&spec, RuntimeKind::Tart).contains("netSoftnetAllow"), "{bad}");
        }
        for bad in ["", " ", "en0\n"] {
            let spec = VmSpec { net_bridged: Some(bad.into()), ..VmSpec::default() };
            assert!(refused(&spec, RuntimeKind::Tart).contains("net-bridged"), "{bad:?}");
        }
    }
}
