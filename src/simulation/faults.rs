//! What goes wrong, and when. Each run has its own selection, so that some runs see much of one thing and none of another:
//! faults that always come together hide what each alone would show.

use std::ops::Range;

use super::bus::{LATEST, Weather};
use super::clock::Millis;
use super::dice::Dice;
use super::disk::{Disk, Health};
use super::guard::LEASE;
use super::world::{Event, World};
use crate::controller::cluster::Restoration;
use crate::model::CopyId;

/// The longest that the controller's process stands still.
const FREEZE: Millis = 30_000;

/// One kind of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A host is cut off.
    Partition,
    /// Every host is.
    Outage,
    /// A host is cut off for longer than its lease.
    LongPartition,
    /// Every host is.
    LongOutage,
    /// The controller loses its bus.
    BusLoss,
    /// A machine sleeps, and its clock goes on.
    Sleep,
    /// Messages are lost, doubled and late.
    Storm,
    /// A worker's process dies and comes back.
    WorkerDies,
    /// A machine loses power and comes back.
    PowerLoss,
    /// A machine never comes back, and is given up after a while.
    MachineDies,
    /// A machine offers more or less after its worker's next start.
    Refit,
    /// A runtime fails often.
    Trouble,
    /// The controller's process dies and comes back.
    ControllerDies,
    /// The same, during a commit.
    DiesCommitting,
    /// It stands still.
    Freeze,
    /// Commits fail.
    DiskFull,
    /// Commits fail, and at times nothing can be read.
    DiskBroken,
    /// Commits take long.
    SlowDisk,
    /// The controller's wall clock jumps.
    ClockJump,
    /// Somebody makes a backup.
    Backup,
    /// Somebody restores it.
    Restore,
}

impl Fault {
    const ALL: [Fault; 21] = [
        Fault::Partition,
        Fault::Outage,
        Fault::LongPartition,
        Fault::LongOutage,
        Fault::BusLoss,
        Fault::Sleep,
        Fault::Storm,
        Fault::WorkerDies,
        Fault::PowerLoss,
        Fault::MachineDies,
        Fault::Refit,
        Fault::Trouble,
        Fault::ControllerDies,
        Fault::DiesCommitting,
        Fault::Freeze,
        Fault::DiskFull,
        Fault::DiskBroken,
        Fault::SlowDisk,
        Fault::ClockJump,
        Fault::Backup,
        Fault::Restore,
    ];

    /// Those of one run.
    pub(super) fn some(dice: &mut Dice) -> Vec<Fault> {
        let share = dice.pick(&[150, 350, 700]).unwrap();
        let mut faults: Vec<Fault> = Self::ALL.into_iter().filter(|_| dice.chance(share)).collect();
        // A restored backup ends what was going on, so it is for some runs only.
        if !dice.chance(600) {
            faults.retain(|fault| *fault != Fault::Restore);
        } else if faults.contains(&Fault::Restore) {
            faults.push(Fault::Backup);
        }
        faults
    }
}

impl World {
    /// Something goes wrong.
    pub(super) fn fault(&mut self) {
        if self.calm {
            return;
        }
        let pause = self.dice.range(500, 12_000);
        self.agenda.after(pause, Event::Fault);
        let Some(fault) = self.dice.pick(&self.faults.clone()) else { return };
        let host = self.dice.below(self.hosts.len());
        let lasts = match fault {
            Fault::LongPartition | Fault::LongOutage => self.dice.range(LEASE, 4 * LEASE),
            Fault::Sleep | Fault::BusLoss => self.dice.delay(10_000, 500, 3 * LEASE),
            _ => self.dice.delay(6_000, 300, 45_000),
        };
        let now = self.agenda.now();
        self.note(|_| format!("fault: {fault:?} (w{host}, {lasts} ms)"));
        match fault {
            Fault::Partition => self.hosts[host].cut_until = now + lasts,
            Fault::LongPartition => self.cut_slowly(host..host + 1, now + lasts),
            Fault::LongOutage => self.cut_slowly(0..self.hosts.len(), now + lasts),
            Fault::BusLoss => {
                (self.bus_cut_until, self.bus_disturbed) = (now + lasts, true);
            }
            Fault::Sleep => self.fall_asleep(host, lasts),
            Fault::Outage => self.hosts.iter_mut().for_each(|host| host.cut_until = now + lasts),
            Fault::Storm => {
                self.weather = Weather {
                    lost: self.dice.range(0, 300),
                    doubled: self.dice.range(0, 300),
                    late: self.dice.range(0, 300),
                    how_late: self.dice.pick(&[200, 5_000, LATEST]).unwrap(),
                };
            }
            Fault::WorkerDies => {
                self.kill_worker(host);
                self.agenda.after(lasts, Event::StartWorker(host));
            }
            Fault::PowerLoss => {
                self.power_off(host);
                self.agenda.after(lasts, Event::PowerOn(host));
            }
            Fault::MachineDies => {
                let living = self.hosts.iter().filter(|host| !host.dead).count();
                if living > 1 && !self.hosts[host].dead {
                    self.power_off(host);
                    self.hosts[host].dead = true;
                    self.agenda.after(lasts, Event::GiveUp(host));
                }
            }
            Fault::Refit => {
                let (cores, memory) = (self.dice.range(1, 4), 1_024 * self.dice.range(2, 16));
                self.kill_worker(host);
                self.hosts[host].offer(cores, memory);
                self.agenda.after(500, Event::StartWorker(host));
            }
            Fault::Trouble => self.hosts[host].trouble = self.dice.range(50, 800),
            Fault::ControllerDies => self.crash_controller(),
            Fault::DiesCommitting => self.kill_at_commit = true,
            Fault::Freeze => {
                // Not one after the other: clients would not wait for so long.
                if let Some(process) = self.controller.as_mut().filter(|p| p.frozen_until + LATEST <= now) {
                    process.frozen_until = now + lasts.min(FREEZE);
                }
            }
            Fault::DiskFull => self.health.failing = self.dice.pick(&[200, 1_000]).unwrap(),
            Fault::DiskBroken => {
                let (failing, unreadable) = (self.dice.range(100, 500), self.dice.range(100, 900));
                self.health = Health { failing, unreadable, ..self.health };
            }
            Fault::SlowDisk => {
                self.health.slow = self.dice.range(50, 500);
                self.health.how_slow = self.dice.pick(&[100, 1_000, 10_000]).unwrap();
            }
            Fault::ClockJump => {
                self.truth.jumped = true;
                let hour = 3_600_000;
                let to = self.dice.range(0, 2 * hour);
                self.skew = i64::try_from(to).unwrap() - i64::try_from(hour).unwrap();
            }
            Fault::Backup => self.backup = Some(self.disk.clone()),
            Fault::Restore => self.restore(),
        }
        self.agenda.after(lasts, Event::FaultOver(fault, host));
    }

    pub(super) fn fault_over(&mut self, fault: Fault, host: usize) {
        match fault {
            Fault::Storm | Fault::LongPartition | Fault::LongOutage => self.weather = Weather::default(),
            Fault::Trouble => self.hosts[host].trouble = 0,
            Fault::DiskFull | Fault::DiskBroken | Fault::SlowDisk => self.health = Health::default(),
            _ => {}
        }
    }

    /// A network often becomes slow before it breaks.
    fn cut_slowly(&mut self, hosts: Range<usize>, until: Millis) {
        let slow = self.dice.chance(500);
        if slow {
            self.weather = Weather { late: 600, how_late: 6_000, ..self.weather };
        }
        let left = if slow { self.dice.range(1_000, 10_000) } else { 0 };
        self.agenda.after(left, Event::Cut { hosts, until });
    }

    pub(super) fn crash_controller(&mut self) {
        self.kill_controller();
        let down = self.dice.delay(3_000, 200, 40_000);
        self.agenda.after(down, Event::StartController);
    }

    /// Stops the controller, puts an older backup in place of its store, and starts it once nothing that was sent to the
    /// old one is under way any more.
    fn restore(&mut self) {
        let Some(backup) = self.backup.clone().filter(|_| !self.restoring) else { return };
        self.kill_controller();
        let down = LATEST + self.dice.range(1, 20_000);
        self.agenda.after(down, Event::Restored);
        self.restoring = true;
        self.subscriber = backup.last_event;
        let now = self.right_time();
        let restored = Restoration::of(&backup.records(), now, now);
        self.disk = Disk { restored, ..backup };
        self.restored = true;
        self.client_forgets();
        self.disk.vms.values().cloned().collect::<Vec<_>>().iter().for_each(|vm| self.note_wish(vm));
        for host in 0..self.hosts.len() {
            let unknown: Vec<_> =
                self.hosts[host].copies.keys().filter(|id| !self.is_known(host, **id)).copied().collect();
            let foreign = self.is_foreign(host);
            for id in unknown {
                if let Some(copy) = self.hosts[host].copies.get_mut(&id) {
                    (copy.orphan, copy.foreign) = (true, foreign);
                    self.hosts[host].strayed = true;
                }
            }
        }
    }

    /// Whether the controller knows of a copy: as one that is wanted, to be removed, or was given up.
    fn is_known(&self, host: usize, id: CopyId) -> bool {
        self.is_named(host, id) || self.disk.given_up.contains_key(&id)
    }
}
