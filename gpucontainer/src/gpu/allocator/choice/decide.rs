//! Who gets what: a function of the request, the host, the leases and those who wait, and of nothing else.

use crate::error::Result;
use crate::gpu::allocator::choice::candidates::{Candidates, Host, Site, is_faulty};
use crate::gpu::allocator::choice::wishes::{ForeignProcesses, Placement, Sharing};
use crate::gpu::allocator::mig::making::{Plan, Room};
use crate::gpu::allocator::slots::record::{Held, Owner, TicketRecord};
use crate::gpu::allocator::slots::table::{Scan, Waiting};
use crate::gpu::request::{GpuRequest, Which};
use crate::gpu::select::{Choice, gibibytes, unavailable, wish};
use crate::sys::process::own_pid;

use std::collections::{BTreeMap, BTreeSet};

/// What a decision is about, besides the host.
#[derive(Debug)]
pub(crate) struct Question<'a> {
    pub(crate) request: &'a GpuRequest,
    pub(crate) scan: &'a Scan,
    /// Those whose request comes before this one, in their order.
    pub(crate) ahead: &'a [Waiting],
    /// Devices whose memory is not back from their last lease.
    pub(crate) returning: &'a BTreeSet<String>,
}

/// The answer.
#[derive(Debug)]
pub(crate) enum Decision<'a> {
    Grant(Vec<Choice<'a>>),
    /// Once what is missing was made.
    Make(Plan),
    /// Not now, and why.
    Later {
        why: String,
        /// Whether something of which nobody is told stands in the way: a foreign process, used memory.
        unannounced: bool,
        /// Whether nothing but memory that is not back stands in the way.
        returning: bool,
    },
}

/// A device that is held, or promised to somebody who waits.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) held: Held,
    pub(crate) holder: String,
    waits: bool,
}

/// Why a device is not free.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Obstacle {
    Leased(String),
    Promised(String),
    Foreign(Vec<u32>),
    Returning,
    Full(String),
    /// Made for a lease that is over, or by somebody who keeps another account.
    Unready(String),
}

/// Decides, without changing anything.
///
/// # Errors
/// As [`Candidates::of`]; and [`GpuUnavailable`](crate::error::ErrorKind::GpuUnavailable) if a foreign process stands
/// in the way of a request that does not want to wait for that.
pub(crate) fn decide<'a>(question: &Question<'_>, host: &Host<'a>) -> Result<Decision<'a>> {
    let request = question.request;
    let candidates = Candidates::of(request, host)?;
    let mut claims = claims(question.scan);
    // Once there is not enough for one, there is nothing left for others who want the same.
    let mut unserved: Vec<&Waiting> = Vec::new();
    let mut room = Room::of(&host.making, &claims);
    for waiting in question.ahead {
        let TicketRecord { request, allowed, makes, .. } = &waiting.record;
        let same = |other: &&Waiting| other.record.wants_as((request, allowed.as_deref(), *makes));
        if !unserved.iter().any(same) && !promise(waiting, host, question.returning, (&mut claims, &mut room)) {
            unserved.push(waiting);
        }
    }
    let judged = judge(&candidates, (request, host), &claims, question.returning, Some(own_pid()));
    if let Some(chosen) = choose(&candidates, &judged, request, host, &claims) {
        return Ok(Decision::Grant(chosen));
    }
    if let Some(plan) = room.plan(&candidates, &free(&candidates, &judged), (request, host), &claims) {
        return Ok(Decision::Make(plan));
    }
    let mut why = reasons(&candidates, &judged, request);
    let none = room.why_none(&candidates.gpus, request, host);
    if !none.is_empty() {
        why = format!("{why}; none can be made now: {}", none.join("; "));
    }
    let foreign = judged.iter().flatten().any(|obstacle| matches!(obstacle, Obstacle::Foreign(_)));
    if foreign && request.wishes.foreign() == ForeignProcesses::Fail {
        return Err(unavailable(why));
    }
    let told = |obstacle: &Obstacle| matches!(obstacle, Obstacle::Leased(_) | Obstacle::Promised(_));
    let untold = judged.iter().flatten().any(|obstacle| !told(obstacle));
    let unannounced = untold || (request.makes().is_some() && room.has_leftovers());
    let returning = judged.contains(&Some(Obstacle::Returning)) && {
        let judged = judge(&candidates, (request, host), &claims, &BTreeSet::new(), Some(own_pid()));
        choose(&candidates, &judged, request, host, &claims).is_some()
    };
    Ok(Decision::Later { why, unannounced, returning })
}

/// Those of the candidates that nothing stands in the way of.
fn free<'a>(candidates: &Candidates<'a>, judged: &[Option<Obstacle>]) -> Vec<Choice<'a>> {
    let devices = candidates.devices.iter().zip(judged);
    devices.filter(|(_, obstacle)| obstacle.is_none()).map(|(choice, _)| *choice).collect()
}

/// Whether somebody else holds one of the devices in a way that does not go together with the request; who.
#[cfg(feature = "nvml")]
pub(crate) fn contested(chosen: &[Choice<'_>], request: &GpuRequest, scan: &Scan) -> Option<String> {
    let claims = claims(scan);
    chosen.iter().find_map(|choice| {
        let touching: Vec<&Claim> = claims.iter().filter(|claim| overlaps(*choice, &claim.held)).collect();
        conflict(*choice, request.wishes.sharing, &touching).map(|claim| claim.holder.clone())
    })
}

/// What is held.
pub(crate) fn claims(scan: &Scan) -> Vec<Claim> {
    let mut claims = Vec::new();
    for live in &scan.live {
        let holder = holder(live.owner.as_ref(), live.user);
        let claim = |held: &Held| Claim { held: held.clone(), holder: holder.clone(), waits: false };
        claims.extend(live.held.iter().map(claim));
    }
    claims
}

/// Keeps for somebody who waits what that one will get, or as much of it as is free: so it cannot be passed for ever. Returns
/// whether there was enough.
fn promise(
    waiting: &Waiting,
    host: &Host<'_>,
    returning: &BTreeSet<String>,
    (claims, room): (&mut Vec<Claim>, &mut Room),
) -> bool {
    let request = &waiting.record.request;
    // What is kept from everybody cannot be promised to anybody, or others would take what is left.
    let faulty = host.refused.iter().filter(|(_, why)| is_faulty(why));
    let refused = faulty.map(|(device, why)| (device.clone(), why.clone())).collect();
    let mut theirs = Host {
        inventory: host.inventory,
        topology: host.topology.clone(),
        refused,
        unready: host.unready.clone(),
        making: host.making.of_others(waiting.record.makes),
    };
    if let Some(allowed) = &waiting.record.allowed {
        // A MIG device that was made since, of a GPU that is allowed, is allowed.
        for gpu in host.inventory.gpus().iter().filter(|gpu| !allowed.contains(&gpu.uuid)) {
            let slices = gpu.mig_devices.iter().map(|slice| &slice.uuid);
            let refused = slices.chain([&gpu.uuid]).filter(|device| !allowed.contains(device));
            theirs.refused.extend(refused.map(|device| (device.clone(), String::new())));
        }
    }
    // One whose request has become impossible will find that out.
    let Ok(candidates) = Candidates::of(request, &theirs) else { return false };
    let judged = judge(&candidates, (request, &theirs), claims, returning, None);
    let holder = holder(Some(&waiting.record.owner), waiting.user);
    let free = free(&candidates, &judged);
    let (promised, enough) = match choose(&candidates, &judged, request, &theirs, claims) {
        Some(chosen) => (chosen, true),
        None => match room.plan(&candidates, &free, (request, &theirs), claims) {
            Some(plan) => {
                room.take(&plan);
                (free.into_iter().filter(|choice| plan.has(choice.uuid())).collect(), true)
            }
            None => {
                room.keep(&candidates.gpus, request, &theirs, &holder);
                (free, false)
            }
        },
    };
    for choice in promised {
        let held = held(choice, request.wishes.sharing);
        claims.push(Claim { held, holder: holder.clone(), waits: true });
    }
    enough
}

/// What a lease on a device says.
pub(crate) fn held(choice: Choice<'_>, sharing: Sharing) -> Held {
    Held { device: choice.uuid().to_owned(), gpu: choice.gpu().uuid.clone(), sharing }
}

/// Somebody, in words.
pub(crate) fn holder(owner: Option<&Owner>, user: u32) -> String {
    match owner {
        Some(owner) if owner.program.is_empty() => format!("process {} (user {user})", owner.pid),
        Some(owner) => format!("process {} ({}, user {user})", owner.pid, owner.program),
        None => format!("a process of user {user}"),
    }
}

/// For each candidate, what keeps the request from it now.
fn judge(
    candidates: &Candidates<'_>,
    (request, host): (&GpuRequest, &Host<'_>),
    claims: &[Claim],
    returning: &BTreeSet<String>,
    own: Option<u32>,
) -> Vec<Option<Obstacle>> {
    let facts = (returning, &host.unready);
    candidates.devices.iter().map(|choice| obstacle(*choice, request, claims, facts, own)).collect()
}

fn obstacle(
    choice: Choice<'_>,
    request: &GpuRequest,
    claims: &[Claim],
    (returning, unready): (&BTreeSet<String>, &BTreeMap<String, String>),
    own: Option<u32>,
) -> Option<Obstacle> {
    let touching: Vec<&Claim> = claims.iter().filter(|claim| overlaps(choice, &claim.held)).collect();
    if let Some(claim) = conflict(choice, request.wishes.sharing, &touching) {
        let words = claim.holder.clone();
        return Some(if claim.waits { Obstacle::Promised(words) } else { Obstacle::Leased(words) });
    }
    // Whose the processes on a shared device are, nobody can tell: they are taken for those of its leases.
    if touching.iter().all(|claim| claim.waits) {
        if let Some(why) = unready.get(choice.uuid()) {
            return Some(Obstacle::Unready(format!("{choice} {why}")));
        }
        let foreign: Vec<u32> = choice.processes().iter().copied().filter(|pid| Some(*pid) != own).collect();
        if !foreign.is_empty() && request.wishes.foreign() != ForeignProcesses::Ignore {
            return Some(Obstacle::Foreign(foreign));
        }
        // Where processes are seen and do not matter, the memory may be theirs.
        if choice.processes().is_empty() && returning.contains(choice.uuid()) {
            return Some(Obstacle::Returning);
        }
    }
    let fraction = if let Sharing::Fraction(bytes) = request.wishes.sharing { bytes } else { 0 };
    let wanted = request.wanted_memory().max(fraction);
    let free = choice.memory().map_or(u64::MAX, |memory| memory.free);
    (free < wanted).then(|| Obstacle::Full(format!("{choice} has {} free", gibibytes(free))))
}

/// Whether both use the same hardware.
fn overlaps(choice: Choice<'_>, held: &Held) -> bool {
    let whole = matches!(choice, Choice::Whole(_)) || held.device == held.gpu;
    held.device == choice.uuid() || (whole && held.gpu == choice.gpu().uuid)
}

/// The claim that does not go together with another of this kind on the device, if there is one.
fn conflict<'c>(choice: Choice<'_>, sharing: Sharing, touching: &[&'c Claim]) -> Option<&'c Claim> {
    let last = *touching.last()?;
    let alike = |claim: &&&Claim| {
        let kind = std::mem::discriminant(&claim.held.sharing) == std::mem::discriminant(&sharing);
        kind && sharing != Sharing::Exclusive && claim.held.device == choice.uuid()
    };
    if let Some(other) = touching.iter().find(|claim| !alike(claim)) {
        return Some(other);
    }
    let held = || touching.iter().map(|claim| claim.held.sharing);
    let fits = match sharing {
        Sharing::Exclusive => false,
        Sharing::Shared(limit) => {
            let limits = held().filter_map(|held| if let Sharing::Shared(limit) = held { Some(limit) } else { None });
            let smallest = limits.chain([limit]).min().unwrap_or(limit);
            touching.len() < usize::try_from(smallest).unwrap_or(usize::MAX)
        }
        Sharing::Fraction(bytes) => {
            let total = choice.memory().map_or(0, |memory| memory.total);
            promised(held()).saturating_add(bytes) <= total
        }
    };
    (!fits).then_some(last)
}

/// The memory that leases were promised.
fn promised(held: impl Iterator<Item = Sharing>) -> u64 {
    held.map(|held| if let Sharing::Fraction(bytes) = held { bytes } else { 0 }).fold(0, u64::saturating_add)
}

/// The best of the free devices; `None` if there are not enough that lie as is wanted.
fn choose<'a>(
    candidates: &Candidates<'a>,
    judged: &[Option<Obstacle>],
    request: &GpuRequest,
    host: &Host<'a>,
    claims: &[Claim],
) -> Option<Vec<Choice<'a>>> {
    let mut free = free(candidates, judged);
    if let Some(sites) = &candidates.sites {
        return pick(sites, &free).into_iter().collect();
    }
    if free.len() < candidates.wanted {
        return None;
    }
    if free.len() == candidates.wanted && matches!(request.which(), Which::Named(_) | Which::All) {
        // In the order asked for.
        return Some(free);
    }
    let placement = request.wishes.placement;
    if request.wishes.sharing != Sharing::Exclusive && matches!(placement, Placement::Best | Placement::KeepPairs) {
        // Who shares goes where others share already, so that whole GPUs stay free for those who do not.
        let sharers = |choice: &Choice<'_>| claims.iter().filter(|claim| claim.held.device == choice.uuid()).count();
        let shared: Vec<Choice<'a>> = free.iter().copied().filter(|choice| sharers(choice) > 0).collect();
        if shared.len() >= candidates.wanted {
            free = shared;
            free.sort_by_key(|choice| std::cmp::Reverse(sharers(choice)));
            free.truncate(candidates.wanted);
            return Some(free);
        }
    }
    let is_free = |choice: Choice<'_>| free.iter().any(|free| free.uuid() == choice.uuid());
    match candidates.places(host, is_free) {
        Some(set) => {
            let set = host.topology.choose(set, candidates.wanted, placement)?;
            Some(set.places().filter_map(|place| Some(Choice::Whole(host.inventory.gpus().get(place)?))).collect())
        }
        None => slices(&free, candidates.wanted, placement, claims),
    }
}

/// What each name gets of the devices that are free.
pub(crate) fn pick<'a>(sites: &[Site<'a>], free: &[Choice<'a>]) -> Vec<Option<Choice<'a>>> {
    let own =
        |choice: &Choice<'_>| sites.iter().any(|site| matches!(site, Site::Device(d) if d.uuid() == choice.uuid()));
    let pick = |site: &Site<'a>| match site {
        Site::Device(device) => free.iter().copied().find(|choice| choice.uuid() == device.uuid()),
        Site::On(gpu) => free.iter().copied().find(|choice| choice.gpu().uuid == gpu.uuid && !own(choice)),
    };
    sites.iter().map(pick).collect()
}

/// The best of free slices: those of GPUs of which others are used already, so that the rest stays whole.
pub(crate) fn slices<'a>(
    free: &[Choice<'a>],
    wanted: usize,
    placement: Placement,
    claims: &[Claim],
) -> Option<Vec<Choice<'a>>> {
    if wanted == 0 {
        return Some(Vec::new());
    }
    let used = |choice: &Choice<'_>| claims.iter().filter(|claim| claim.held.gpu == choice.gpu().uuid).count();
    let mut ordered = free.to_vec();
    match placement {
        Placement::Spread => {
            let mut next: BTreeMap<&str, usize> = BTreeMap::new();
            // The first free slice of each GPU, then the second of each, and so on.
            let mut ranked: Vec<(usize, Choice<'a>)> = Vec::new();
            for choice in ordered {
                let turn = next.entry(&choice.gpu().uuid).or_insert_with(|| used(&choice));
                ranked.push((*turn, choice));
                *turn += 1;
            }
            ranked.sort_by_key(|(turn, _)| *turn);
            ordered = ranked.into_iter().map(|(_, choice)| choice).collect();
        }
        _ => ordered.sort_by_key(|choice| (std::cmp::Reverse(used(choice)), choice.gpu().index)),
    }
    if placement == Placement::SameNumaNode {
        let nodes: BTreeSet<Option<u32>> = ordered.iter().map(|choice| choice.gpu().numa_node).collect();
        let on = |node| ordered.iter().copied().filter(|c| c.gpu().numa_node == node).collect::<Vec<_>>();
        ordered = nodes.into_iter().map(on).find(|group| group.len() >= wanted)?;
    }
    ordered.truncate(wanted);
    (ordered.len() == wanted).then_some(ordered)
}

/// Why not now: `2 of 8 free: 5 leased by process 71 (python, user 0); 1 busy with foreign process 4242`.
fn reasons(candidates: &Candidates<'_>, judged: &[Option<Obstacle>], request: &GpuRequest) -> String {
    let free = judged.iter().filter(|obstacle| obstacle.is_none()).count();
    let (mut leased, mut promised): (BTreeMap<&str, usize>, BTreeMap<&str, usize>) = Default::default();
    let (mut foreign, mut busy, mut returning, mut full) = (BTreeSet::new(), 0, 0, Vec::new());
    for obstacle in judged.iter().flatten() {
        match obstacle {
            Obstacle::Leased(holder) => *leased.entry(holder).or_default() += 1,
            Obstacle::Promised(holder) => *promised.entry(holder).or_default() += 1,
            Obstacle::Foreign(pids) => {
                busy += 1;
                foreign.extend(pids.iter().map(u32::to_string));
            }
            Obstacle::Returning => returning += 1,
            Obstacle::Full(words) | Obstacle::Unready(words) => full.push(words.as_str()),
        }
    }
    let mut parts = Vec::new();
    for (holders, verb) in [(leased, "leased by"), (promised, "promised to, who waits,")] {
        let count: usize = holders.values().sum();
        let names: Vec<String> = match holders.len() {
            1 => holders.keys().map(|holder| (*holder).to_owned()).collect(),
            _ => holders.iter().map(|(holder, count)| format!("{holder}: {count}")).collect(),
        };
        if count > 0 {
            parts.push(format!("{count} {verb} {}", names.join(", ")));
        }
    }
    if busy > 0 {
        let pids: Vec<String> = foreign.into_iter().collect();
        let word = if pids.len() == 1 { "process" } else { "processes" };
        parts.push(format!("{busy} busy with foreign {word} {}", pids.join(", ")));
    }
    if returning > 0 {
        parts.push(format!("{returning} whose memory is not back from the last lease"));
    }
    parts.extend(full.into_iter().map(str::to_owned));
    if free >= candidates.wanted {
        parts.push("those that are free do not lie as is wanted".to_owned());
    }
    let why = if parts.is_empty() { String::new() } else { format!(": {}", parts.join("; ")) };
    format!("{} asked for: {free} of {} free{why}", wish(request), judged.len())
}

#[cfg(all(test, feature = "nvml"))]
mod tests {
    use super::*;
    use crate::gpu::allocator::mig::fit::{Kind, SplitGpu};
    use crate::gpu::allocator::mig::making::{Making, Splits};
    use crate::gpu::inventory::Inventory;
    use crate::gpu::select::tests::split;
    use crate::sys::mig::Span;

    #[test]
    fn who_can_make_devices_is_not_passed_because_one_who_cannot_waits_for_the_same() {
        let (gpu, request) = (split(0, 0), GpuRequest::count(1).mig_profile("1g.5gb"));
        let kind = Kind {
            id: 19,
            name: "1g.5gb".to_owned(),
            slices: 1,
            instances: 1,
            most: 1,
            memory: 5 << 30,
            spans: vec![Span { start: 0, size: 1 }],
        };
        let state = SplitGpu { kinds: vec![kind], taken: Vec::new(), temporary: Vec::new() };
        let splits = Splits { gpus: [(gpu.uuid.clone(), Ok(state))].into(), ..Splits::default() };
        let inventory = Inventory { gpus: vec![gpu], ..Inventory::default() };
        let host = Host::of(&inventory, BTreeMap::new(), Making::Yes(splits));
        let waiting = |order: i128, makes| {
            let owner = Owner { pid: 71, ..Owner::own() };
            let record = TicketRecord { owner, request: request.clone(), allowed: None, order, makes };
            Waiting { id: order.to_string(), user: 0, record }
        };
        let decision = |ahead: &[Waiting]| {
            let (scan, returning) = (Scan::default(), BTreeSet::new());
            decide(&Question { request: &request, scan: &scan, ahead, returning: &returning }, &host).unwrap()
        };
        assert!(matches!(decision(&[waiting(1, false)]), Decision::Make(_)), "who may not make any keeps none");
        for ahead in [vec![waiting(2, true)], vec![waiting(1, false), waiting(2, true)]] {
            let decision = decision(&ahead);
            assert!(matches!(decision, Decision::Later { .. }), "{decision:?}");
        }
    }
}
