//! What stands in the way of a VM, and why it went where it is, in words for people.

use std::collections::BTreeMap;
use std::fmt;

use crate::model::resources::{LOGICAL_CORES, MEMORY_MIB, Resources, TART_VMS, WORKER_NAME_LABEL};
use crate::model::settings::Profile;

/// Why a worker cannot take a VM. In this order they are told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Obstacle<'a> {
    Unseen,
    Paused,
    OtherWorker,
    Runtime,
    Arch,
    GuestOs,
    HostDirs,
    Label(&'a str, &'a str),
    TooSmall(&'a str, u64),
    Lacks(&'a str, u64),
    KeptFree,
}

/// Workers by what they said.
#[derive(Default)]
pub(super) struct Tally<'a> {
    workers: usize,
    fitting: usize,
    /// How many said it, and the most that any of them has of what there is too little of.
    obstacles: BTreeMap<Obstacle<'a>, (usize, u64)>,
}

impl<'a> Tally<'a> {
    /// Counts a worker that offers `offered`.
    pub(super) fn count(&mut self, said: Result<(), Obstacle<'a>>, offered: &Resources) {
        self.workers += 1;
        match said {
            Ok(()) => self.fitting += 1,
            Err(obstacle) => {
                let has = if let Obstacle::TooSmall(resource, _) = obstacle { offered.get(resource) } else { 0 };
                let (count, most) = self.obstacles.entry(obstacle).or_default();
                (*count, *most) = (*count + 1, has.max(*most));
            }
        }
    }

    pub(super) fn explanation(self) -> Explanation {
        let told = |(obstacle, (count, most)): (Obstacle<'_>, _)| {
            let largest = match obstacle {
                Obstacle::TooSmall(MEMORY_MIB, _) => format!(" (the largest has {most} MiB)"),
                Obstacle::TooSmall(..) if most == 0 => " (the largest has none)".to_owned(),
                Obstacle::TooSmall(..) => format!(" (the largest has {most})"),
                _ => String::new(),
            };
            (format!("{obstacle}{largest}"), count)
        };
        let obstacles = self.obstacles.into_iter().map(told).collect();
        Explanation { workers: self.workers, fitting: self.fitting, obstacles }
    }
}

/// What stands in the way of a VM: each worker counts for the first thing that is in its way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    /// Workers there are.
    pub workers: usize,
    /// Those that could take it now.
    pub fitting: usize,
    /// What removed how many of the others.
    pub obstacles: Vec<(String, usize)>,
}

/// Why a VM was placed where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Why {
    /// Workers on which it fitted.
    pub fitting: usize,
    /// Workers there were.
    pub workers: usize,
    /// What decided among them.
    pub profile: Profile,
    /// VMs that were there already.
    pub vms: usize,
    /// The image was there, too.
    pub has_image: bool,
    /// The worker had been kept free for it.
    pub kept_free: bool,
}

impl fmt::Display for Obstacle<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::Unseen => f.write_str("not online"),
            Obstacle::Paused => f.write_str("paused"),
            Obstacle::OtherWorker => f.write_str("other than the one it is bound to"),
            Obstacle::Runtime => f.write_str("with another runtime"),
            Obstacle::Arch => f.write_str("of another architecture"),
            Obstacle::HostDirs => f.write_str("unable to share host directories"),
            Obstacle::GuestOs => f.write_str("unable to run macOS"),
            Obstacle::Label(WORKER_NAME_LABEL, name) => write!(f, "not named {name}"),
            Obstacle::Label(name, value) => write!(f, "without label {name}={value}"),
            Obstacle::TooSmall(resource, asked) => write!(f, "too small for {}", amount(resource, *asked)),
            Obstacle::Lacks(resource, asked) => write!(f, "without {} free", amount(resource, *asked)),
            Obstacle::KeptFree => f.write_str("kept free for a VM that has waited for longer"),
        }
    }
}

/// So much of a resource, as people say it.
fn amount(resource: &str, count: u64) -> String {
    let plural = if count == 1 { "" } else { "s" };
    match resource {
        LOGICAL_CORES => format!("{count} core{plural}"),
        MEMORY_MIB => format!("{count} MiB of memory"),
        TART_VMS => format!("{count} slot{plural} for VMs"),
        _ => format!("{count} {resource}"),
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.workers == 0 {
            return f.write_str("waiting for a worker: none has registered yet");
        }
        match self.fitting {
            0 => write!(f, "waiting for a worker: of {} none fits", self.workers)?,
            fitting => write!(f, "of {} workers {fitting} can take it", self.workers)?,
        }
        for (i, (obstacle, count)) in self.obstacles.iter().enumerate() {
            write!(f, "{} {count} {obstacle}", if i == 0 { ":" } else { "," })?;
        }
        Ok(())
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kept_free {
            return f.write_str("which had been kept free for it");
        }
        if self.workers == 1 {
            return f.write_str("the only worker there is");
        }
        if self.fitting == 1 {
            return write!(f, "the only one of {} workers that could take it", self.workers);
        }
        let most = match self.profile {
            Profile::OptimizeUtilization => "fullest",
            Profile::DistributeLoad => "emptiest",
        };
        write!(f, "the {most} of {} that could take it ({} VMs", self.fitting, self.vms)?;
        f.write_str(if self.has_image { ", has the image)" } else { ")" })
    }
}
