//! Asks the system how busy it is: Linux by files that the kernel answers from memory, macOS by its own tools.

use super::parse::{self, CpuTimes, Memory};

/// What a system says of its processors.
pub(super) enum Cpu {
    /// In use, in thousandths of all.
    #[cfg_attr(not(target_os = "macos"), allow(dead_code))]
    Permille(u64),
    /// Since the machine's start.
    #[cfg_attr(target_os = "macos", allow(dead_code))]
    Times(CpuTimes),
}

#[cfg(not(target_os = "macos"))]
pub(super) async fn cpu() -> Option<Cpu> {
    Some(Cpu::Times(parse::cpu_times(&std::fs::read_to_string("/proc/stat").ok()?)?))
}

#[cfg(not(target_os = "macos"))]
pub(super) async fn memory() -> Option<Memory> {
    parse::meminfo(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

#[cfg(target_os = "macos")]
pub(super) async fn cpu() -> Option<Cpu> {
    let processors = std::thread::available_parallelism().ok()?.get();
    let load = output_of("/usr/sbin/sysctl", &["-n", "vm.loadavg"]).await?;
    Some(Cpu::Permille(parse::loadavg(&load, u64::try_from(processors).ok()?)?))
}

#[cfg(target_os = "macos")]
pub(super) async fn memory() -> Option<Memory> {
    let size = output_of("/usr/sbin/sysctl", &["-n", "hw.memsize"]).await?;
    let size: u64 = size.trim().parse().ok()?;
    parse::vm_stat(&output_of("/usr/bin/vm_stat", &[]).await?, size >> 20)
}

#[cfg(target_os = "macos")]
async fn output_of(program: &str, arguments: &[&str]) -> Option<String> {
    /// They answer at once.
    const LIMIT: std::time::Duration = std::time::Duration::from_secs(5);
    let mut asked = tokio::process::Command::new(program);
    let asked = asked.args(arguments).kill_on_drop(true).output();
    let output = tokio::time::timeout(LIMIT, asked).await.ok()?.ok()?;
    String::from_utf8(output.stdout).ok()
}
