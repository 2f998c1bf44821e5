//! MIG devices that a request lacks: whether they could ever be made, and where they are made now.
//!
//! Nothing is changed here; `makers` does what a [`Plan`] says.

use crate::gpu::allocator::choice::candidates::{Candidates, Host, suitable_memory, unsuitable_gpu};
use crate::gpu::allocator::choice::decide::{Claim, pick, slices};
use crate::gpu::allocator::choice::wishes::Placement;
use crate::gpu::allocator::mig::fit::{self, SplitGpu};
use crate::gpu::allocator::mig::instances::why_not;
use crate::gpu::allocator::mig::journal::Entry;
use crate::gpu::inventory::{Gpu, MigDevice};
use crate::gpu::request::{GpuRequest, Vendor};
use crate::gpu::select::{Choice, gibibytes};
use crate::sys::mig::Span;

use std::collections::{BTreeMap, BTreeSet};

/// What can be made of MIG devices.
#[derive(Clone, Debug)]
pub(crate) enum Making {
    /// Nobody looked; somebody else may be able to make some.
    Unknown,
    /// None, and why.
    No(String),
    Yes(Splits),
}

/// The GPUs in MIG mode.
#[derive(Clone, Debug, Default)]
pub(crate) struct Splits {
    /// What each offers and has, by UUID, or why that cannot be told.
    pub(crate) gpus: BTreeMap<String, Result<SplitGpu, String>>,
    /// What was made for leases.
    pub(crate) entries: Vec<Entry>,
    /// Whether some of that belongs to nobody any more, and could not be destroyed.
    pub(crate) leftovers: bool,
}

/// A place for a new MIG device.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Place {
    /// The UUID of the GPU.
    pub(crate) gpu: String,
    pub(crate) kind: u32,
    pub(crate) span: Span,
}

/// How a request can be served: by devices that are there, and others that are made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Plan {
    /// The devices in the order asked for, those to be made as `None`.
    pub(crate) devices: Vec<Option<String>>,
    pub(crate) places: Vec<Place>,
}

impl Plan {
    /// Whether the device is one of those that are there.
    pub(crate) fn has(&self, uuid: &str) -> bool {
        self.devices.iter().flatten().any(|device| device == uuid)
    }
}

/// The room on split GPUs, less what those need who come before.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    splits: Option<Splits>,
    /// GPUs on which nothing can be made now, and why.
    kept: BTreeMap<String, String>,
}

impl Making {
    /// How many more devices could be on these GPUs at once, if nobody had leases on any.
    pub(crate) fn ever(&self, gpus: &[&Gpu], request: &GpuRequest, host: &Host<'_>) -> usize {
        let Some(profile) = request.makes() else { return 0 };
        let splits = match self {
            Self::Unknown => return usize::MAX,
            Self::No(_) => return 0,
            Self::Yes(splits) => splits,
        };
        let on = |gpu: &&Gpu| match splits.gpus.get(&gpu.uuid) {
            Some(Ok(state)) if suits(gpu, state, profile, request, host).is_none() => state.ever(profile),
            _ => 0,
        };
        gpus.iter().map(|gpu| usize::try_from(on(gpu)).unwrap_or(0)).sum()
    }

    /// Whether the device goes when its leases end.
    pub(crate) fn is_temporary(&self, gpu: &Gpu, slice: &MigDevice) -> bool {
        let Self::Yes(splits) = self else { return false };
        splits.entries.iter().any(|entry| !entry.found && entry.concerns(&gpu.uuid, slice))
    }

    /// Why no device can be made, for each of the GPUs.
    pub(crate) fn why_none(&self, gpus: &[&Gpu], request: &GpuRequest, host: &Host<'_>) -> Vec<String> {
        Room::of(self, &[]).why_none(gpus, request, host)
    }

    /// What somebody else can make, who can make any or not.
    pub(crate) fn of_others(&self, makes: bool) -> Self {
        match self {
            _ if !makes => Self::No(String::new()),
            Self::Yes(splits) => Self::Yes(splits.clone()),
            _ => Self::Unknown,
        }
    }

    /// Whether anything can be made at all.
    pub(crate) fn makes(&self) -> bool {
        matches!(self, Self::Yes(_))
    }
}

/// Why the GPU's own facts keep it from a device of the profile, if they do.
fn suits(gpu: &Gpu, state: &SplitGpu, profile: &str, request: &GpuRequest, host: &Host<'_>) -> Option<String> {
    if let Some(why) = unsuitable_gpu(gpu, request, host) {
        return Some(why);
    }
    let Some(kind) = state.kind(profile) else { return Some(why_not("", state, profile).trim_start().to_owned()) };
    let wanted = suitable_memory(request);
    (kind.memory < wanted).then(|| format!("makes {} with {} in all", kind.name, gibibytes(kind.memory)))
}

impl Room {
    /// All room, but on GPUs that somebody has leased as a whole.
    pub(crate) fn of(making: &Making, claims: &[Claim]) -> Self {
        let splits = match making {
            Making::Yes(splits) => Some(splits.clone()),
            Making::Unknown | Making::No(_) => None,
        };
        let whole = claims.iter().filter(|claim| claim.held.device == claim.held.gpu);
        let kept = whole.map(|claim| (claim.held.gpu.clone(), format!("is leased by {}", claim.holder)));
        Self { splits, kept: kept.collect() }
    }

    /// Whether something that nobody tells of is in the way.
    pub(crate) fn has_leftovers(&self) -> bool {
        self.splits.as_ref().is_some_and(|splits| splits.leftovers)
    }

    /// Keeps what is free of the GPUs that could serve the request for somebody who waits.
    pub(crate) fn keep(&mut self, gpus: &[&Gpu], request: &GpuRequest, host: &Host<'_>, holder: &str) {
        let could = |gpu: &&&Gpu| host.making.ever(&[gpu], request, host) > 0;
        for gpu in gpus.iter().filter(could) {
            let why = format!("is promised to {holder}, who waits");
            self.kept.entry(gpu.uuid.clone()).or_insert(why);
        }
    }

    /// Takes the places of a plan.
    pub(crate) fn take(&mut self, plan: &Plan) {
        for place in &plan.places {
            if let Some(Ok(state)) = self.splits.as_mut().and_then(|splits| splits.gpus.get_mut(&place.gpu)) {
                state.taken.push((place.kind, place.span));
            }
        }
    }

    /// How the request can be served with `free` of the devices that are there, and new ones; `None` if it cannot.
    pub(crate) fn plan<'a>(
        &self,
        candidates: &Candidates<'a>,
        free: &[Choice<'a>],
        (request, host): (&GpuRequest, &Host<'a>),
        claims: &[Claim],
    ) -> Option<Plan> {
        request.makes()?;
        let uuid = |choice: Choice<'_>| choice.uuid().to_owned();
        if let Some(sites) = &candidates.sites {
            let picked = pick(sites, free);
            let mut room = self.clone();
            let mut places = Vec::new();
            for (site, picked) in sites.iter().zip(&picked) {
                if picked.is_none() {
                    let place = room.find(&[site.gpu()?], 1, request, host)?;
                    room.take(&Plan { devices: Vec::new(), places: place.clone() });
                    places.extend(place);
                }
            }
            let devices = picked.into_iter().map(|picked| picked.map(uuid)).collect();
            return Some(Plan { devices, places });
        }
        let all: Vec<&Gpu> = candidates.gpus.clone();
        let groups: Vec<Vec<&Gpu>> = match request.wishes.placement {
            Placement::SameNumaNode => {
                let nodes: BTreeSet<Option<u32>> = all.iter().map(|gpu| gpu.numa_node).collect();
                nodes.iter().map(|node| all.iter().copied().filter(|gpu| gpu.numa_node == *node).collect()).collect()
            }
            _ => vec![all],
        };
        groups.into_iter().find_map(|group| {
            let on = |choice: &Choice<'a>| group.iter().any(|gpu| gpu.uuid == choice.gpu().uuid);
            let there: Vec<Choice<'a>> = free.iter().copied().filter(on).collect();
            let number = there.len().min(candidates.wanted);
            let there = slices(&there, number, request.wishes.placement, claims)?;
            let places = self.find(&group, candidates.wanted - number, request, host)?;
            let made = places.iter().map(|_| None);
            Some(Plan { devices: there.into_iter().map(|choice| Some(uuid(choice))).chain(made).collect(), places })
        })
    }

    /// Places for `number` more devices on the GPUs.
    fn find(&self, gpus: &[&Gpu], number: usize, request: &GpuRequest, host: &Host<'_>) -> Option<Vec<Place>> {
        let (profile, splits) = (request.makes()?, self.splits.as_ref()?);
        let usable = |gpu: &&&Gpu| !self.kept.contains_key(&gpu.uuid);
        let (mut uuids, mut states) = (Vec::new(), Vec::new());
        for gpu in gpus.iter().filter(usable) {
            if let Some(Ok(state)) = splits.gpus.get(&gpu.uuid) {
                if suits(gpu, state, profile, request, host).is_none() {
                    uuids.push(gpu.uuid.clone());
                    states.push(state.clone());
                }
            }
        }
        let mut places = Vec::new();
        for _ in 0..number {
            let fit = match request.wishes.placement {
                Placement::Spread => spread(&states, profile)?,
                _ => fit::best(&states, profile)?,
            };
            states[fit.gpu].taken.push((fit.kind, fit.span));
            places.push(Place { gpu: uuids[fit.gpu].clone(), kind: fit.kind, span: fit.span });
        }
        Some(places)
    }

    /// Why no device can be made now, for each of the GPUs.
    pub(crate) fn why_none(&self, gpus: &[&Gpu], request: &GpuRequest, host: &Host<'_>) -> Vec<String> {
        let Some(profile) = request.makes() else { return Vec::new() };
        let splits = match (&self.splits, &host.making) {
            (Some(splits), _) => splits,
            (None, Making::No(why)) => {
                let whole = gpus.iter().filter(|gpu| gpu.vendor == Vendor::Nvidia && !gpu.mig_enabled);
                let split = gpus.iter().any(|gpu| gpu.mig_enabled);
                let reasons = whole.map(|gpu| format!("{} is not in MIG mode", Choice::Whole(gpu)));
                return reasons.chain(split.then(|| why.clone())).collect();
            }
            _ => return Vec::new(),
        };
        let why = |gpu: &&Gpu| {
            let why = match splits.gpus.get(&gpu.uuid) {
                _ if gpu.vendor != Vendor::Nvidia => return None,
                _ if !gpu.mig_enabled => "is not in MIG mode".to_owned(),
                None => "says nothing of its instances".to_owned(),
                Some(Err(why)) => why.clone(),
                Some(Ok(state)) => suits(gpu, state, profile, request, host)
                    .or_else(|| self.kept.get(&gpu.uuid).cloned())
                    .or_else(|| (state.now(profile) > 0).then(|| format!("has room for {}", state.now(profile))))
                    .unwrap_or_else(|| why_not("", state, profile).trim_start().to_owned()),
            };
            Some(format!("{} {why}", Choice::Whole(gpu)))
        };
        gpus.iter().filter_map(why).collect()
    }
}

/// A place on the GPU of which the least is used.
fn spread(states: &[SplitGpu], profile: &str) -> Option<fit::Fit> {
    let mut order: Vec<usize> = (0..states.len()).collect();
    order.sort_by_key(|index| states[*index].taken.len());
    order.into_iter().find_map(|index| {
        let fit = fit::best(std::slice::from_ref(&states[index]), profile)?;
        Some(fit::Fit { gpu: index, ..fit })
    })
}
