//! What systems say of how busy they are, read from their own text. Pure.

/// Time that processors have spent since the machine's start, all of them together, in the system's ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::worker) struct CpuTimes {
    busy: u64,
    all: u64,
}

impl CpuTimes {
    /// How much of the processors was in use since `before`, in thousandths; none when no time has passed.
    pub(in crate::worker) fn permille_since(self, before: Self) -> Option<u64> {
        let (busy, all) = (self.busy.saturating_sub(before.busy), self.all.saturating_sub(before.all));
        busy.saturating_mul(1_000).checked_div(all).map(|permille| permille.min(1_000))
    }
}

/// Memory, in MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::worker) struct Memory {
    pub(in crate::worker) size: u64,
    /// What can be had without swapping.
    pub(in crate::worker) available: u64,
}

/// Reads `/proc/stat`.
#[cfg(any(not(target_os = "macos"), test))]
pub(in crate::worker) fn cpu_times(stat: &str) -> Option<CpuTimes> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    // user nice system idle iowait irq softirq steal; what follows for guests is within user.
    let mut times = line.split_whitespace().take(8).map(str::parse::<u64>);
    let mut next = || times.next()?.ok();
    let (user, nice, system, idle) = (next()?, next()?, next()?, next()?);
    let (waiting, rest) = (next().unwrap_or(0), [next(), next(), next()]);
    let busy = rest.into_iter().flatten().chain([user, nice, system]).fold(0u64, u64::saturating_add);
    Some(CpuTimes { busy, all: busy.saturating_add(idle).saturating_add(waiting) })
}

/// Reads `/proc/meminfo`.
#[cfg(any(not(target_os = "macos"), test))]
pub(in crate::worker) fn meminfo(text: &str) -> Option<Memory> {
    let kib = |key: &str| -> Option<u64> {
        let value = text.lines().find_map(|line| line.strip_prefix(key))?.strip_prefix(':')?;
        value.split_whitespace().next()?.parse().ok()
    };
    let (size, available) = (kib("MemTotal")?, kib("MemAvailable")?);
    Some(Memory { size: size >> 10, available: available.min(size) >> 10 })
}

/// Reads what `sysctl -n vm.loadavg` prints: the load of the last minute, for each of so many processors, in thousandths.
#[cfg(any(target_os = "macos", test))]
pub(in crate::worker) fn loadavg(text: &str, processors: u64) -> Option<u64> {
    let first = text.trim().trim_start_matches('{').split_whitespace().next()?;
    // Where people write decimals with a comma, so does it.
    let (whole, part) = first.split_once(['.', ','])?;
    let part: u64 = format!("{part:0<3}").get(..3)?.parse().ok()?;
    let load = whole.parse::<u64>().ok()?.checked_mul(1_000)?.checked_add(part)?;
    load.checked_div(processors).map(|permille| permille.min(1_000))
}

/// Reads what `vm_stat` prints, on a machine with `size` MiB.
#[cfg(any(target_os = "macos", test))]
pub(in crate::worker) fn vm_stat(text: &str, size: u64) -> Option<Memory> {
    let (_, page) = text.split_once("page size of ")?;
    let page: u64 = page.split_whitespace().next()?.parse().ok()?;
    let pages = |key: &str| -> Option<u64> {
        let value = text.lines().find_map(|line| line.strip_prefix(key))?.strip_prefix(':')?;
        value.trim().trim_end_matches('.').parse().ok()
    };
    // What the system gives up before it swaps.
    let free = ["Pages free", "Pages inactive", "Pages speculative"].iter().filter_map(|key| pages(key));
    let available = free.fold(0u64, u64::saturating_add).saturating_mul(page) >> 20;
    pages("Pages free").map(|_| Memory { size, available: available.min(size) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Debian 12 on two cores.
    const STAT: &str = "\
cpu  1036215 1275 244103 7160213 30211 0 12033 4410 0 0
cpu0 518107 637 122051 3580106 15105 0 6016 2205 0 0
cpu1 518108 638 122052 3580107 15106 0 6017 2205 0 0
intr 90221334 0 0 0
ctxt 201776102
btime 1763837114
";
    const MEMINFO: &str = "\
MemTotal:       24587284 kB
MemFree:         3211804 kB
MemAvailable:   20102344 kB
Buffers:          402144 kB
Cached:         15622048 kB
";
    /// macOS 14 on an M1 with 16 GB.
    const VM_STAT: &str = "\
Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               12345.
Pages active:                            301122.
Pages inactive:                          298001.
Pages speculative:                         1802.
Pages throttled:                              0.
Pages wired down:                        130433.
Pages purgeable:                           4033.
\"Translation faults\":                 812263377.
";

    #[test]
    fn linux_is_read() {
        let now = cpu_times(STAT).unwrap();
        let busy = 1_036_215 + 1_275 + 244_103 + 12_033 + 4_410;
        assert_eq!(now, CpuTimes { busy, all: busy + 7_160_213 + 30_211 });
        let later = CpuTimes { busy: now.busy + 50, all: now.all + 200 };
        assert_eq!((later.permille_since(now), now.permille_since(now)), (Some(250), None));
        assert_eq!(cpu_times("cpu  1 2 3 4\n"), Some(CpuTimes { busy: 6, all: 10 }), "an old kernel");
        assert_eq!(meminfo(MEMINFO), Some(Memory { size: 24_011, available: 19_631 }));
    }

    #[test]
    fn macos_is_read() {
        assert_eq!(loadavg("{ 2.53 1.90 1.71 }\n", 8), Some(316));
        assert_eq!(loadavg("{ 2,5 1,90 1,71 }\n", 8), Some(312));
        assert_eq!(loadavg("{ 31.00 1.90 1.71 }\n", 8), Some(1_000), "more than there are processors");
        assert_eq!(vm_stat(VM_STAT, 16_384), Some(Memory { size: 16_384, available: 4_877 }));
    }

    proptest! {
        #[test]
        fn anything_else_is_not_known_and_harms_nothing(text in ".{0,300}", processors: u64) {
            for text in [text.clone(), format!("cpu {text}"), format!("MemTotal: 1\nMemAvailable:{text}")] {
                let _ = (cpu_times(&text), meminfo(&text), loadavg(&text, processors), vm_stat(&text, 1));
            }
            let _ = vm_stat(&format!("page size of 9 bytes\nPages free:{text}"), 1);
        }
    }
}
