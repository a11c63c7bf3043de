//! API verbs: decode, do, encode.

use super::{Context, access, images, placing, settings};
use crate::bus::access::{
    AuditPage, CreateAccount, CreateJoinToken, DeleteAccount, DeleteJoinToken, DeleteWorker, GetAccount, ListAccounts,
    ListAudit, ListJoinTokens, RotateAccount, UpdateAccount,
};
use crate::bus::connect::{GetAddress, HostTicket, OpenHost, OpenTunnel, TunnelTicket, VmAddress};
use crate::bus::encoding::Encoding;
use crate::bus::images::{CancelPull, GetPull, ListHeldImages, ListImages, ListPulls, PullImage};
use crate::bus::life::UpdateVm;
use crate::bus::message::{
    Answer, ApiCall, ControllerInfo, CreateVm, DeleteVm, Done, EventPage, GetInfo, GetVm, GetWorker, ListEvents,
    ListVms, ListWorkers, MAX_EVENT_PAGE, MAX_PAGE, VmPage, WorkerPage,
};
use crate::bus::placing::{DrainWorker, ExplainVm, PauseWorker, ResumeWorker};
use crate::bus::settings::{GetSettings, SetSettings};
use crate::bus::status::{ControllerStatus, GetStatus};
use crate::bus::strays::{DeleteStray, ListStrays};
use crate::controller::store::{Room, StoreError};
use crate::identity;
use crate::model::access::rule;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::event::EventFilter;
use crate::model::secret::Secret;
use crate::model::vm::{Vm, VmStatus};
use crate::model::worker::{DataPath, WorkerView};
use crate::model::{AccountName, CopyId, VmName, VmUid, WorkerName};
use crate::trace;
use crate::tunnel::relay::Gatekeeper as _;
use crate::tunnel::ticket::{Grant, TICKET_TTL, Target};

/// A page of an answer ends at this size, whatever number was asked for: scripts and log lines are long, and the bus
/// carries 1 MiB. One item alone is always smaller.
pub(in crate::controller) const PAGE_SIZE: usize = 512 * 1024;
/// The same where the answer is JSON. There a byte may take six (`\u001b`), and a number or a name some more than in
/// MessagePack, by which pages are measured.
pub(super) const JSON_PAGE_SIZE: usize = PAGE_SIZE / 8;

macro_rules! verbs {
    ($($call:ty => $handler:path),+ $(,)?) => {
        /// Resource and verb of each call that is answered here.
        #[cfg(test)]
        const HANDLED: &[(&str, &str)] = &[$((<$call>::RESOURCE, <$call>::VERB)),+];

        async fn dispatch(
            context: &Context,
            account: AccountName,
            (resource, verb): (&str, &str),
            payload: &[u8],
        ) -> Result<Vec<u8>, ApiError> {
            let encoding = Encoding::of(payload);
            match (resource, verb) {
                $((<$call>::RESOURCE, <$call>::VERB) => {
                    reply::<$call>(encoding, $handler(context, account, encoding.decode(payload)?).await)
                })+
                _ => Err(unknown(resource, verb)),
            }
        }
    };
}

verbs! {
    CreateVm => create_vm, UpdateVm => update_vm, GetVm => get_vm, ListVms => list_vms, DeleteVm => delete_vm,
    GetWorker => get_worker, ListWorkers => list_workers, DeleteWorker => delete_worker,
    ListEvents => list_events, OpenTunnel => open_tunnel, OpenHost => open_host, GetAddress => get_address, GetInfo => get_info,
    GetStatus => get_status,
    CreateAccount => access::create, GetAccount => access::get, ListAccounts => access::list,
    UpdateAccount => access::update, RotateAccount => access::rotate, DeleteAccount => access::delete,
    CreateJoinToken => access::create_join_token, ListJoinTokens => access::list_join_tokens,
    DeleteJoinToken => access::delete_join_token, ListAudit => list_audit,
    GetSettings => settings::get, SetSettings => settings::set,
    ListStrays => settings::list_strays, DeleteStray => settings::delete_stray,
    ExplainVm => placing::explain, PauseWorker => placing::pause, ResumeWorker => placing::resume,
    DrainWorker => placing::drain,
    ListImages => images::list, ListHeldImages => images::list_held, PullImage => images::pull,
    CancelPull => images::cancel, ListPulls => images::list_pulls, GetPull => images::get_pull,
}

/// Answers one request of `account`, which the broker let speak under that name. What it may do is looked up again here:
/// an outside broker may be set up otherwise, and a role may have been taken away since.
pub(super) async fn handle(
    context: &Context,
    account: AccountName,
    (resource, verb): (&str, &str),
    payload: &[u8],
) -> Result<Vec<u8>, ApiError> {
    let rule = rule(resource, verb).ok_or_else(|| unknown(resource, verb))?;
    context.access.authorise_verb(&account, rule, context.clock.now().wall)?;
    dispatch(context, account, (resource, verb), payload).await
}

fn unknown(resource: &str, verb: &str) -> ApiError {
    ApiError::new(
        ErrorCode::UnknownVerb,
        format!(
            "this controller (release {}) knows no {resource}.{verb}; it may be older than the caller",
            env!("CARGO_PKG_VERSION")
        ),
    )
}

fn reply<C: ApiCall>(encoding: Encoding, result: Result<C::Reply, ApiError>) -> Result<Vec<u8>, ApiError> {
    // An error is encoded by the caller, who also records it.
    encoding.encode(&Answer::Ok(result?))
}

async fn create_vm(
    context: &Context,
    by: AccountName,
    request: CreateVm,
) -> Result<<CreateVm as ApiCall>::Reply, ApiError> {
    // Version 7: sorts by age, which the scheduler and the store's key order both use.
    let uid = VmUid(uuid::Uuid::now_v7());
    if let Some(here) = trace::current() {
        context.traces.note(uid, here);
    }
    context.writer.submit(move |step| step.cluster.create_vm(Some(by), request, uid, step.now, step.changes)).await
}

async fn update_vm(
    context: &Context,
    _: AccountName,
    request: UpdateVm,
) -> Result<<UpdateVm as ApiCall>::Reply, ApiError> {
    let (traces, here) = (context.traces.clone(), trace::current());
    let update = context.writer.submit(move |step| {
        let vm = step.cluster.update_vm(request, step.now, step.changes)?;
        // In the step, as what its worker is told is read by a later one; and only if it is to be told something.
        if let Some(here) = here.filter(|_| vm.generation > vm.observed_generation) {
            traces.note(vm.uid, here);
        }
        Ok(vm)
    });
    update.await
}

async fn get_vm(context: &Context, _: AccountName, request: GetVm) -> Result<<GetVm as ApiCall>::Reply, ApiError> {
    context.writer.submit(move |step| step.cluster.vm(&request.name, step.now)).await
}

async fn list_vms(context: &Context, _: AccountName, request: ListVms) -> Result<VmPage, ApiError> {
    let limit = page(request.limit, MAX_PAGE);
    let size = context.page_size;
    let read = context.writer.submit(move |step| Ok(step.cluster.vms(request.after.as_ref(), limit, size, step.now)));
    let (vms, more) = read.await?;
    Ok(VmPage { vms, more })
}

async fn delete_vm(context: &Context, _: AccountName, request: DeleteVm) -> Result<Done, ApiError> {
    let (traces, here) = (context.traces.clone(), trace::current());
    let delete = context.writer.submit(move |step| {
        if let Some(here) = here {
            traces.note(step.cluster.vm(&request.name, step.now)?.uid, here);
        }
        step.cluster.delete_vm(&request.name, step.now, step.changes)
    });
    delete.await?;
    Ok(Done {})
}

async fn get_worker(context: &Context, _: AccountName, request: GetWorker) -> Result<WorkerView, ApiError> {
    let view = context.writer.submit(move |step| step.cluster.worker(&request.name)).await?;
    let link = context.relay.link(&view.worker.info.name);
    let path = link.map(|link| DataPath {
        address: link.address.to_string(),
        rtt_us: u64::try_from(link.rtt.as_micros()).unwrap_or(u64::MAX),
        sent: link.sent,
        lost: link.lost,
        age_s: link.age.as_secs(),
        answered_s: link.proven.map(|ago| ago.as_secs()),
        connects: link.connects,
    });
    Ok(WorkerView { path, ..connectable(context, view) })
}

async fn list_workers(context: &Context, _: AccountName, request: ListWorkers) -> Result<WorkerPage, ApiError> {
    let limit = page(request.limit, MAX_PAGE);
    let size = context.page_size;
    let read = context.writer.submit(move |step| Ok(step.cluster.workers(request.after.as_ref(), limit, size)));
    let (views, more) = read.await?;
    Ok(WorkerPage { workers: views.into_iter().map(|view| connectable(context, view)).collect(), more })
}

async fn delete_worker(context: &Context, _: AccountName, request: DeleteWorker) -> Result<Done, ApiError> {
    let DeleteWorker { name, force } = request;
    context.writer.submit(move |step| step.cluster.delete_worker(&name, force, step.now, step.changes)).await?;
    Ok(Done {})
}

fn connectable(context: &Context, mut view: WorkerView) -> WorkerView {
    let reached = context.relay.reaches(&view.worker.info.name);
    view.connectable = reached.is_ok();
    view.not_connectable_because = reached.err().map(|why| why.message).unwrap_or_default();
    view
}

async fn list_events(context: &Context, _: AccountName, request: ListEvents) -> Result<EventPage, ApiError> {
    // First the highest durable number, then the events: none of them can be missing below it.
    let last = context.writer.submit(|step| Ok(step.cluster.last_event())).await?;
    let (store, room) = (context.store.clone(), room(context, request.limit));
    let ListEvents { after, vm, name, worker, types, .. } = request;
    let filter = EventFilter { uid: vm, vm: name, worker, types };
    let page = read("events", move || store.events(after, room, &filter)).await?;
    let (next, last) = place_of(page.seen, page.more, last);
    Ok(EventPage { events: page.items, next, last, first_kept: page.first_kept })
}

async fn list_audit(context: &Context, _: AccountName, request: ListAudit) -> Result<AuditPage, ApiError> {
    // In this order, as for events.
    let last = context.writer.submit(|step| Ok(step.cluster.last_audit())).await?;
    let (store, room) = (context.store.clone(), room(context, request.limit));
    let page = read("the audit trail", move || store.audit(request.after, room)).await?;
    let (next, last) = place_of(page.seen, page.more, last);
    Ok(AuditPage { records: page.items, next, last, first_kept: page.first_kept })
}

/// Reads from the store, off the tasks that must not wait for a disk.
async fn read<T: Send + 'static>(
    what: &'static str,
    from: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, ApiError> {
    let failed =
        || ApiError::new(ErrorCode::Internal, format!("the controller failed to read {what}; its log says more"));
    let read = tokio::task::spawn_blocking(from).await.map_err(|_| failed())?;
    read.map_err(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "cannot read {what}");
        failed()
    })
}

/// Where to go on after a page for which all up to `seen` was looked at, and the highest number given out so far, which was
/// `last` before the page was read. A number that has not been given out yet, as after a restored backup, leads back to the
/// last that has.
fn place_of(seen: u64, more: bool, last: u64) -> (u64, u64) {
    // The reading is younger than `last`: items after it may be here, and must not be sent once more.
    let last = last.max(seen);
    (if more { seen } else { last }, last)
}

async fn open_tunnel(context: &Context, account: AccountName, request: OpenTunnel) -> Result<TunnelTicket, ApiError> {
    let (grant, CopyId { uid, attempt }) = grant(context, account, request.vm, request.port).await?;
    let ticket = issue(context, grant)?;
    Ok(TunnelTicket { endpoint: context.tunnel.clone(), ticket, uid, attempt: Some(attempt) })
}

/// The right of `account`, which is looked at when it is used, to a stream into the port of the VM as it runs now; and which copy
/// of it that is.
///
/// # Errors
/// Why there can be none now, for people; [`ErrorCode::Unavailable`] when that may change by itself.
pub(in crate::controller) async fn grant(
    context: &Context,
    account: AccountName,
    vm: VmName,
    port: u16,
) -> Result<(Grant, CopyId), ApiError> {
    let (vm, copy, worker) = reachable(context, vm).await?;
    let since = context.gate.token_since(&account);
    Ok((Grant { account, target: Target::Vm { name: vm.name, copy }, worker, port, since }, copy))
}

async fn open_host(context: &Context, account: AccountName, request: OpenHost) -> Result<HostTicket, ApiError> {
    let OpenHost { worker, port } = request;
    if port == 0 {
        return Err(ApiError::new(ErrorCode::Invalid, "give a port from 1 to 65535"));
    }
    let name = worker.clone();
    let view = context.writer.submit(move |step| {
        let view = step.cluster.worker(&name)?;
        match step.cluster.silence_of(&name, step.now) {
            Some(why) => Err(ApiError::new(ErrorCode::Unavailable, why)),
            None => Ok(view),
        }
    });
    let machine_id = view.await?.worker.info.machine_id;
    context.relay.reaches(&worker)?;
    let since = context.gate.token_since(&account);
    let ticket = issue(context, Grant { account, target: Target::Host, worker, port, since })?;
    Ok(HostTicket { endpoint: context.tunnel.clone(), ticket, machine_id })
}

/// A ticket for what is granted.
fn issue(context: &Context, grant: Grant) -> Result<Secret, ApiError> {
    let ticket = identity::new_token();
    context.gate.issue(&ticket, grant, context.clock.now().mono, TICKET_TTL)?;
    Ok(ticket)
}

async fn get_address(context: &Context, _: AccountName, request: GetAddress) -> Result<VmAddress, ApiError> {
    let (vm, copy, worker) = reachable(context, request.vm).await?;
    let ip = context.relay.locate(&worker, copy).await?;
    Ok(VmAddress { ip: ip.to_string(), uid: vm.uid })
}

/// The VM, its copy and the worker that can be asked for it now.
async fn reachable(context: &Context, name: VmName) -> Result<(Vm, CopyId, WorkerName), ApiError> {
    let vm = context.writer.submit(move |step| {
        let vm = step.cluster.vm(&name, step.now)?;
        if let Some(why) = vm.worker.as_ref().and_then(|worker| step.cluster.silence_of(worker, step.now)) {
            return Err(ApiError::new(ErrorCode::Unavailable, why));
        }
        Ok(vm)
    });
    let vm = vm.await?;
    let worker = match (vm.status, &vm.worker) {
        (VmStatus::Running, Some(worker)) => worker.clone(),
        (VmStatus::Failed, _) => {
            let why = format!("VM {} has failed: {}", vm.name, vm.status_message);
            return Err(ApiError::new(ErrorCode::Conflict, why));
        }
        _ => {
            let why = format!("VM {} is not running yet: {}", vm.name, vm.status_message);
            return Err(ApiError::new(ErrorCode::Unavailable, why));
        }
    };
    context.relay.reaches(&worker)?;
    let copy = vm.copy_id();
    Ok((vm, copy, worker))
}

async fn get_info(context: &Context, account: AccountName, _: GetInfo) -> Result<ControllerInfo, ApiError> {
    let last_event = context.writer.submit(|step| Ok(step.cluster.last_event())).await?;
    let roles = context.access.account(&account).map(|account| account.view.roles);
    let outside_bus = !context.workers_have_keys;
    Ok(ControllerInfo { version: env!("CARGO_PKG_VERSION").to_owned(), last_event, roles, outside_bus })
}

async fn get_status(context: &Context, _: AccountName, _: GetStatus) -> Result<ControllerStatus, ApiError> {
    context.watch.status().await
}

pub(super) fn page(asked: u32, most: u32) -> usize {
    let size = if asked == 0 { most } else { asked.min(most) };
    usize::try_from(size).unwrap_or(usize::MAX)
}

/// How much of what is stored goes into one answer.
fn room(context: &Context, asked: u32) -> Room {
    Room { items: page(asked, MAX_EVENT_PAGE), bytes: context.page_size }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_of_the_table_is_answered_and_no_other() {
        let table: Vec<_> = crate::model::access::VERBS.iter().map(|verb| (verb.resource, verb.verb)).collect();
        for verb in HANDLED {
            assert!(table.contains(verb), "{verb:?} is answered but nobody may call it");
        }
        for verb in &table {
            assert!(HANDLED.contains(verb), "{verb:?} may be called but is not answered");
        }
    }

    #[test]
    fn a_number_that_is_not_given_out_yet_leads_back_to_the_last_that_is() {
        assert_eq!(place_of(0, false, 7), (7, 7));
    }

    #[test]
    fn what_was_stored_while_the_page_was_read_is_not_sent_again() {
        assert_eq!(place_of(9, false, 7), (9, 9));
        assert_eq!(place_of(4, false, 7), (7, 7));
        assert_eq!(place_of(5, true, 7), (5, 7));
    }
}
