//! Makes a copy: pull?, clone, fqn, and the settings; and takes away what is left of one that could not be made.

use std::time::Duration;

use super::Tart;
use super::args;
use super::names::disk_name;
use super::notes::Note;
use super::parse::{self, FetchProgress};
use crate::identity;
use crate::model::features;
use crate::model::vm::ImagePullPolicy;
use crate::worker::runtime::fetches::{Fetched, Urgency};
use crate::worker::runtime::host_dirs::{self, Archives};
use crate::worker::runtime::tool::Call;
use crate::worker::runtime::{CopySpec, Progress, RuntimeError};

/// A clone may pull tens of gigabytes first.
const FETCH_LIMIT: Duration = Duration::from_secs(6 * 3600);
/// How long the end of what an earlier worker process began may take.
const LEFTOVER_LIMIT: Duration = Duration::from_secs(10);

impl Tart {
    /// Makes the copy; after an error nothing is left of it, unless the tool cannot delete it either.
    pub(super) async fn make(&self, copy: &CopySpec, progress: &Progress) -> Result<(), RuntimeError> {
        check_image(&copy.spec.image)?;
        features::check(&copy.spec, self.options.kind).map_err(|error| RuntimeError::State(error.message))?;
        host_dirs::check(&copy.spec.host_dirs, Archives::Taken)?;
        let name = disk_name(&copy.name, copy.id);
        self.end_leftover(&name).await?;
        self.notes.remove_all(&name);
        self.notes.write(&name, Note::Unstarted, b"")?;
        self.names().insert(copy.id, name.clone());
        let made = self.make_as(copy, &name, progress).await;
        if let Err(error) = &made {
            progress.say(format!("taking away what is left: {error}"));
            if let Err(why) = self.remove(copy.id).await {
                tracing::warn!(copy = %copy.id, "what is left of a VM that could not be made cannot be removed: {why}");
            }
        }
        made
    }

    async fn make_as(&self, copy: &CopySpec, name: &str, progress: &Progress) -> Result<(), RuntimeError> {
        let image = copy.spec.image.as_str();
        let cloning = "cloning the image";
        // Without this look, VMs of an image that is there would wait for each other, and room be made at its cost.
        let held = copy.spec.image_pull_policy == ImagePullPolicy::IfNotPresent && self.listing().await?.has(image);
        if !held {
            self.make_room().await;
        }
        let _images = self.images.read().await;
        match copy.spec.image_pull_policy {
            ImagePullPolicy::Always => {
                let pull = |progress, _turn| self.fetch(args::pull(image), name, progress, "pulling the image");
                self.fetches.fetch((image, Urgency::Needed), progress, pull).await?;
                self.fetch(args::clone(image, name), name, progress.clone(), cloning).await?;
            }
            ImagePullPolicy::IfNotPresent if held => {
                self.fetch(args::clone(image, name), name, progress.clone(), cloning).await?;
            }
            ImagePullPolicy::IfNotPresent => {
                let clone = |progress, _turn| self.fetch(args::clone(image, name), name, progress, cloning);
                if self.fetches.fetch((image, Urgency::Needed), progress, clone).await? == Fetched::Elsewhere {
                    self.fetch(args::clone(image, name), name, progress.clone(), cloning).await?;
                }
            }
        }
        progress.say("configuring");
        if let Ok(told) = self.tool(&args::fqn(image)).await
            && let Some(fqn) = parse::fqn(&told)
        {
            self.notes.write(name, Note::Fqn, fqn.as_bytes())?;
        }
        if copy.spec.net_bridged.is_some() {
            self.notes.write(name, Note::Bridged, b"")?;
        }
        for call in args::settings(self.options.kind, copy, name) {
            self.tool(&call).await?;
        }
        Ok(())
    }

    /// A call that may fetch an image; its process is noted, so that it does not go on unseen if this worker is killed.
    async fn fetch(&self, args: Vec<String>, name: &str, progress: Progress, begin: &str) -> Result<(), RuntimeError> {
        progress.say(begin);
        let note = self.notes.path(name, Note::Making);
        let call = Call {
            program: &self.options.program,
            args: &args,
            cwd: None,
            limit: self.options.limits.fetch,
            note: Some(&note),
            input: None,
        };
        let mut far = FetchProgress::default();
        let mut listener = |line: &str| {
            if let Some(text) = far.read(line) {
                progress.say(text);
            }
        };
        let called = call.run(&mut listener).await;
        called.map(drop).map_err(|error| match error {
            RuntimeError::Tool(why) => RuntimeError::Image(why),
            other => other,
        })
    }

    /// The same for no VM in particular.
    pub(super) async fn fetch_alone(&self, image: &str, progress: Progress) -> Result<(), RuntimeError> {
        let name = format!("pull-{}", data_encoding::HEXLOWER.encode(&identity::hash_of(image).0));
        self.fetch(args::pull(image), &name, progress, "pulling the image").await
    }

    /// Ends the call by which a worker process that was killed was making a copy.
    pub(super) async fn end_leftover(&self, name: &str) -> Result<(), RuntimeError> {
        let Some(process) = self.notes.process(name, Note::Making).await else { return Ok(()) };
        tracing::warn!("{name} was being made by a worker that was killed; that is ended");
        if process.kill_group(LEFTOVER_LIMIT).await {
            return Ok(());
        }
        Err(RuntimeError::Timeout(format!("the process {} that makes {name} cannot be killed", process.pid)))
    }

    /// Takes the copy out of the tool's hands and forgets it.
    pub(super) async fn remove(&self, id: crate::model::CopyId) -> Result<(), RuntimeError> {
        let known = self.names().get(&id).cloned();
        if let Some(name) = &known {
            self.end_leftover(name).await?;
        }
        let found = self.find(id).await?;
        if let Some(vm) = &found {
            self.end_run(id, Duration::ZERO).await?;
            let deleted = self.tool(&args::delete(&vm.name)).await;
            if deleted.is_err() && self.find(id).await?.is_some() {
                deleted?;
            }
        }
        self.addresses.forget(id);
        self.names().remove(&id);
        if let Some(name) = found.map(|vm| vm.name).or(known) {
            self.notes.remove_all(&name);
        }
        Ok(())
    }
}

/// Refuses what the tool would take for an option.
pub(super) fn check_image(image: &str) -> Result<(), RuntimeError> {
    if image.is_empty() || image.starts_with('-') {
        return Err(RuntimeError::Image(format!("{image:?} is not the name of an image")));
    }
    Ok(())
}

/// How long calls of the tool may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Those that may fetch an image.
    pub fetch: Duration,
    /// Those that change or list what is on disk.
    pub command: Duration,
    /// From the start of `run` until the tool lists the VM as running.
    pub start: Duration,
    /// For writing a guest's memory.
    pub suspend: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            fetch: FETCH_LIMIT,
            command: Duration::from_secs(60),
            start: Duration::from_secs(60),
            suspend: Duration::from_secs(300),
        }
    }
}
