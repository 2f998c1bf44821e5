//! Which devices of a host could ever serve a request, whoever uses them now.
//!
//! What contradicts itself, and what is more than the host has, fails here: no waiting would mend it.

use crate::error::{Error, ErrorKind, Result};
use crate::gpu::allocator::choice::outer::Refused;
use crate::gpu::allocator::choice::wishes::{Placement, Sharing};
use crate::gpu::allocator::mig::making::Making;
use crate::gpu::inventory::{Gpu, Inventory};
use crate::gpu::request::{GpuName, GpuRequest, Vendor, Which};
use crate::gpu::select::{self, Choice, gibibytes, unavailable, wish};
use crate::gpu::topology::{GpuSet, Topology};

use std::collections::BTreeMap;

/// A host, as far as decisions about its GPUs depend on it.
#[derive(Debug)]
pub(crate) struct Host<'a> {
    pub(crate) inventory: &'a Inventory,
    pub(crate) topology: Topology,
    /// Devices that may not be used, and why.
    pub(crate) refused: Refused,
    /// MIG devices that nobody has leased and that still are not free, and why.
    pub(crate) unready: BTreeMap<String, String>,
    /// Which MIG devices can be made.
    pub(crate) making: Making,
}

impl<'a> Host<'a> {
    /// The host of an inventory, of which nobody looked what can be made.
    pub(crate) fn of(inventory: &'a Inventory, refused: Refused, making: Making) -> Self {
        Self { inventory, topology: Topology::of(inventory), refused, unready: BTreeMap::new(), making }
    }
}

/// The devices that could serve a request, and how many of them it wants.
#[derive(Debug)]
pub(crate) struct Candidates<'a> {
    pub(crate) devices: Vec<Choice<'a>>,
    pub(crate) wanted: usize,
    /// What each name stands for, if one is that of a split GPU, of which any device of the profile will do.
    pub(crate) sites: Option<Vec<Site<'a>>>,
    /// The GPUs on which devices that are missing may be made.
    pub(crate) gpus: Vec<&'a Gpu>,
}

/// What a name stands for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Site<'a> {
    Device(Choice<'a>),
    /// A device on this GPU.
    On(&'a Gpu),
}

impl<'a> Site<'a> {
    /// The GPU on which a device may be made.
    #[cfg(feature = "nvml")]
    pub(crate) fn gpu(self) -> Option<&'a Gpu> {
        match self {
            Self::On(gpu) => Some(gpu),
            Self::Device(_) => None,
        }
    }
}

/// Refuses what no host could serve.
pub(crate) fn check(request: &GpuRequest) -> Result<()> {
    let refuse = |why: String| Err(Error::new(ErrorKind::InvalidArgument, why));
    let wishes = &request.wishes;
    if matches!(request.which(), Which::None | Which::DriverOnly | Which::AsImageSays) {
        return refuse("a lease of no GPU is asked for".to_owned());
    }
    match wishes.sharing {
        Sharing::Shared(0) => return refuse("a GPU shared by 0 is nobody's".to_owned()),
        Sharing::Fraction(0) => return refuse("a fraction of 0 bytes is no fraction".to_owned()),
        _ => {}
    }
    if let Sharing::Fraction(bytes) = wishes.sharing {
        if request.wanted_memory() > bytes {
            let more = gibibytes(request.wanted_memory());
            return refuse(format!("a fraction with {} is asked for, and {more} free", gibibytes(bytes)));
        }
    }
    for (text, what) in [(&wishes.model, "model"), (&wishes.mig_profile, "MIG profile")] {
        if text.as_ref().is_some_and(|text| text.trim().is_empty()) {
            return refuse(format!("an empty {what} is asked for"));
        }
    }
    let vendor = request.wanted_vendor();
    if vendor != Vendor::Nvidia && (wishes.mig_profile.is_some() || wishes.min_compute_capability.is_some()) {
        return refuse(format!("a MIG profile or a compute capability is asked for, which no {vendor} GPU has"));
    }
    if let Some(mps) = &wishes.mps {
        mps.check(request)?;
    }
    let several = match request.which() {
        Which::Count(count) => *count > 1,
        Which::Named(names) => names.len() > 1,
        _ => false,
    };
    if several && wishes.mig_profile.is_some() && wishes.mps.is_some() {
        return refuse("MPS for several MIG devices is asked for: a process of CUDA can use one".to_owned());
    }
    if several && wishes.mig_profile.is_some() && wishes.placement == Placement::NvlinkRequired {
        return refuse("MIG devices connected by NVLink are asked for, and MIG devices have no NVLink".to_owned());
    }
    Ok(())
}

impl<'a> Candidates<'a> {
    /// The devices of the host that could serve the request.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if the request contradicts itself, [`ErrorKind::GpuUnavailable`] if the host
    /// does not have what is asked for.
    pub(crate) fn of(request: &GpuRequest, host: &Host<'a>) -> Result<Self> {
        check(request)?;
        let found = match request.which() {
            Which::Named(names) => Self::named(names, request, host)?,
            _ => Self::counted(request, host, &select::of_vendor(request, host.inventory)?)?,
        };
        found.placeable(request, host)?;
        Ok(found)
    }

    fn named(names: &[GpuName], request: &GpuRequest, host: &Host<'a>) -> Result<Self> {
        let mut devices: Vec<Choice<'a>> = Vec::new();
        let mut sites: Vec<Site<'a>> = Vec::new();
        for name in names {
            if let Some(gpu) = Self::split(name, request, host)? {
                if !sites.iter().any(|site| matches!(site, Site::On(known) if known.uuid == gpu.uuid)) {
                    sites.push(Site::On(gpu));
                }
                continue;
            }
            let choices = match name {
                GpuName::Cdi(name) => described(&name.to_string(), request, host)?,
                name => vec![select::find(name, &select::of_vendor(request, host.inventory)?)?],
            };
            for choice in choices {
                if let Some(why) = unsuitable(choice, request, host) {
                    return Err(unavailable(format!("{} asked for: {choice} {why}", wish(request))));
                }
                if !devices.iter().any(|before| before.uuid() == choice.uuid()) {
                    devices.push(choice);
                    sites.push(Site::Device(choice));
                }
            }
        }
        let wanted = sites.len();
        let gpus = sites.iter().filter_map(|site| if let Site::On(gpu) = site { Some(*gpu) } else { None }).collect();
        if wanted == 0 {
            let why = format!("a lease of no GPU is asked for: {} is none of this host's", wish(request));
            return Err(Error::new(ErrorKind::InvalidArgument, why));
        }
        let mut found = Self { devices, wanted, sites: None, gpus };
        if !found.gpus.is_empty() {
            found.sites = Some(sites);
            found.add_split(request, host)?;
        }
        Ok(found)
    }

    /// The split GPU of that name, of which a device of a profile is wanted.
    fn split(name: &GpuName, request: &GpuRequest, host: &Host<'a>) -> Result<Option<&'a Gpu>> {
        if request.wishes.mig_profile.is_none() || matches!(name, GpuName::Cdi(_)) {
            return Ok(None);
        }
        let gpus = select::of_vendor(request, host.inventory)?;
        let named = gpus.into_iter().find(|gpu| match name {
            GpuName::Index(index) => gpu.index == *index,
            GpuName::Uuid(uuid) => gpu.uuid == *uuid,
            _ => false,
        });
        // Of a GPU that is whole the reason is that it is; or that it could be split, and nobody has.
        Ok(named.filter(|gpu| gpu.mig_enabled || request.makes().is_some()))
    }

    /// Adds the devices of the split GPUs that are named, each of which must have one that suits, or get one.
    fn add_split(&mut self, request: &GpuRequest, host: &Host<'a>) -> Result<()> {
        for gpu in &self.gpus {
            let all = gpu.mig_devices.iter().map(|slice| Choice::Slice(gpu, slice));
            let new = |choice: &Choice<'a>| !self.devices.iter().any(|before| before.uuid() == choice.uuid());
            let suit: Vec<_> = all.filter(|c| new(c) && unsuitable(*c, request, host).is_none()).collect();
            if suit.is_empty() && host.making.ever(&[gpu], request, host) == 0 {
                let mut reasons = host.making.why_none(&[gpu], request, host);
                if reasons.is_empty() {
                    let profile = request.wishes.mig_profile.as_deref().unwrap_or_default();
                    reasons.push(format!("{} has no MIG device of {profile} that suits", Choice::Whole(gpu)));
                }
                return Err(unavailable(format!("{} asked for: {}", wish(request), reasons.join("; "))));
            }
            self.devices.extend(suit);
        }
        Ok(())
    }

    fn counted(request: &GpuRequest, host: &Host<'a>, gpus: &[&'a Gpu]) -> Result<Self> {
        let mut devices = select::candidates(gpus);
        let whole = devices.iter().any(|choice| matches!(choice, Choice::Whole(_)));
        let slices = request.wishes.mig_profile.is_some();
        if slices || (whole && *request.which() != Which::All) {
            // CUDA does not use whole GPUs and slices together.
            devices.retain(|choice| matches!(choice, Choice::Slice(..)) == slices);
        }
        let known = devices.len();
        let mut reasons = Vec::new();
        devices.retain(|choice| match unsuitable(*choice, request, host) {
            Some(why) => {
                reasons.push(format!("{choice} {why}"));
                false
            }
            None => true,
        });
        let wanted = match request.which() {
            Which::Count(count) => usize::try_from(*count).unwrap_or(usize::MAX),
            _ => devices.len().max(1),
        };
        let makers = if request.makes().is_some() { gpus.to_vec() } else { Vec::new() };
        let found = Self { devices, wanted, sites: None, gpus: makers };
        let could = host.making.ever(&found.gpus, request, host);
        if found.devices.len() >= wanted || found.lasting(host, |_| true).saturating_add(could) >= wanted {
            return Ok(found);
        }
        let kind = if slices { "MIG devices" } else { "GPUs" };
        let suit = found.devices.len();
        let none = host.making.why_none(&found.gpus, request, host);
        if !none.is_empty() {
            let more = if could == 0 { "none can be made".to_owned() } else { format!("{could} can be made") };
            reasons.push(format!("{more}: {}", none.join("; ")));
        }
        let why = if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join("; ")) };
        Err(unavailable(format!("{} asked for: {suit} of this host's {known} {kind} suit{why}", wish(request))))
    }

    /// How many devices that pass are there whatever leases end.
    fn lasting(&self, host: &Host<'_>, pass: impl Fn(&Gpu) -> bool) -> usize {
        let lasts = |choice: &&Choice<'_>| match choice {
            Choice::Slice(gpu, slice) => !host.making.is_temporary(gpu, slice),
            Choice::Whole(_) => true,
        };
        self.devices.iter().filter(|choice| pass(choice.gpu())).filter(lasts).count()
    }

    /// Whether so many can ever be on one NUMA node.
    fn gather(&self, request: &GpuRequest, host: &Host<'a>) -> bool {
        self.gpus.iter().any(|first| {
            let near: Vec<&Gpu> = self.gpus.iter().copied().filter(|gpu| gpu.numa_node == first.numa_node).collect();
            let there = self.lasting(host, |gpu| gpu.numa_node == first.numa_node);
            there.saturating_add(host.making.ever(&near, request, host)) >= self.wanted
        })
    }

    /// Whether all devices together have a set that lies as is wanted.
    fn placeable(&self, request: &GpuRequest, host: &Host<'a>) -> Result<()> {
        let demanding = matches!(request.wishes.placement, Placement::NvlinkRequired | Placement::SameNumaNode);
        if self.wanted < 2 || !demanding {
            return Ok(());
        }
        let possible = match self.places(host, |_| true) {
            Some(set) => host.topology.choose(set, self.wanted, request.wishes.placement).is_some(),
            None => {
                crate::gpu::allocator::choice::decide::slices(&self.devices, self.wanted, request.wishes.placement, &[])
                    .is_some()
            }
        };
        if possible || self.sites.is_some() || self.gather(request, host) {
            return Ok(());
        }
        let how = match request.wishes.placement {
            Placement::NvlinkRequired => "are connected by NVLink",
            Placement::SameNumaNode => "are attached to one NUMA node",
            _ => "can be used together",
        };
        Err(unavailable(format!("{} asked for: no {} of this host that suit {how}", wish(request), self.wanted)))
    }

    /// The places in the inventory of those whole GPUs that pass; `None` if there are slices among the candidates.
    pub(crate) fn places(&self, host: &Host<'_>, pass: impl Fn(Choice<'a>) -> bool) -> Option<GpuSet> {
        let whole = self.devices.iter().all(|choice| matches!(choice, Choice::Whole(_)));
        let place = |choice: Choice<'_>| host.inventory.gpus().iter().position(|gpu| gpu.uuid == choice.uuid());
        whole.then(|| self.devices.iter().filter(|choice| pass(**choice)).filter_map(|choice| place(*choice)).collect())
    }
}

/// The GPUs, of any vendor, that the device of a specification stands for.
fn described<'a>(name: &str, request: &GpuRequest, host: &Host<'a>) -> Result<Vec<Choice<'a>>> {
    let gpus: Vec<&Gpu> = host.inventory.gpus().iter().collect();
    let devices = request.wishes.described.get(name).into_iter().flatten();
    devices.map(|uuid| select::find(&GpuName::Uuid(uuid.clone()), &gpus)).collect()
}

/// Whether a device is refused to everybody, and not to us alone.
pub(crate) fn is_faulty(why: &str) -> bool {
    why.starts_with("in quarantine") || why.starts_with("lost")
}

/// Why the device can never serve the request, if it cannot.
fn unsuitable(choice: Choice<'_>, request: &GpuRequest, host: &Host<'_>) -> Option<String> {
    let wishes = &request.wishes;
    if let Some(why) = refusal(choice.uuid(), host).or_else(|| unsuitable_model(choice.gpu(), request)) {
        return Some(why);
    }
    if let Some(profile) = &wishes.mig_profile {
        match choice {
            Choice::Slice(_, slice) if slice.profile.eq_ignore_ascii_case(profile) => {}
            Choice::Slice(_, slice) => return Some(format!("is of profile {}", slice.profile)),
            Choice::Whole(_) => return Some("is no MIG device".to_owned()),
        }
    }
    let wanted = suitable_memory(request);
    match choice.memory() {
        _ if wanted == 0 => None,
        Some(memory) if memory.total >= wanted => None,
        Some(memory) => Some(format!("has {} in all", gibibytes(memory.total))),
        None => Some("does not say how much memory it has".to_owned()),
    }
}

/// Why the device may not be used, if it may not.
fn refusal(uuid: &str, host: &Host<'_>) -> Option<String> {
    let why = host.refused.get(uuid)?;
    Some(if is_faulty(why) { format!("is {why}") } else { format!("is not ours: {why}") })
}

/// Why a MIG device of the GPU can never serve the request, whatever its profile.
#[cfg(feature = "nvml")]
pub(crate) fn unsuitable_gpu(gpu: &Gpu, request: &GpuRequest, host: &Host<'_>) -> Option<String> {
    refusal(&gpu.uuid, host).or_else(|| unsuitable_model(gpu, request))
}

/// The memory that a device must have in all.
pub(crate) fn suitable_memory(request: &GpuRequest) -> u64 {
    let fraction = if let Sharing::Fraction(bytes) = request.wishes.sharing { bytes } else { 0 };
    request.wishes.min_total_memory.max(request.wanted_memory()).max(fraction)
}

fn unsuitable_model(gpu: &Gpu, request: &GpuRequest) -> Option<String> {
    let wishes = &request.wishes;
    if let Some(pattern) = wishes.model.as_ref().filter(|pattern| !matches(pattern, &gpu.name)) {
        return Some(format!("is no {pattern}"));
    }
    let (major, minor) = wishes.min_compute_capability?;
    match gpu.compute_capability {
        Some(has) if has >= (major, minor) => None,
        Some((has, less)) => Some(format!("has compute capability {has}.{less}")),
        None => Some("does not say its compute capability".to_owned()),
    }
}

/// Whether `text` has the form of `pattern`, upper and lower case alike.
fn matches(pattern: &str, text: &str) -> bool {
    let lower = |text: &str| text.trim().to_lowercase().chars().collect::<Vec<char>>();
    let (pattern, text) = (lower(pattern), lower(text));
    let (mut at, mut from) = (0, 0);
    // Where to go on if what follows the last star turns out not to fit.
    let mut star: Option<(usize, usize)> = None;
    while from < text.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at + 1, from));
                at += 1;
            }
            Some(sign) if *sign == '?' || *sign == text[from] => {
                at += 1;
                from += 1;
            }
            _ => match star {
                Some((after, taken)) => {
                    star = Some((after, taken + 1));
                    at = after;
                    from = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|sign| *sign == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_found_by_their_form() {
        let name = "NVIDIA A100-SXM4-80GB";
        for pattern in ["*a100*", "NVIDIA A100-SXM?-80GB", "*", "nvidia*80gb", "*A*0*GB*"] {
            assert!(matches(pattern, name), "{pattern}");
        }
        for pattern in ["A100", "*h100*", "NVIDIA", "*40gb", "?"] {
            assert!(!matches(pattern, name), "{pattern}");
        }
    }

    #[test]
    fn contradictions_are_refused() {
        let one = || GpuRequest::count(1);
        let requests = [
            GpuRequest::none(),
            "none".parse().unwrap(),
            one().sharing(Sharing::Shared(0)),
            one().sharing(Sharing::Fraction(0)),
            one().sharing(Sharing::Fraction(1)).min_free_memory(2),
            one().model(" "),
            one().mig_profile(""),
            one().vendor(Vendor::Amd).mig_profile("1g.10gb"),
            one().vendor(Vendor::Intel).min_compute_capability(8, 0),
            GpuRequest::count(2).mig_profile("1g.10gb").placement(Placement::NvlinkRequired),
            GpuRequest::as_image_says(),
        ];
        for request in requests {
            assert_eq!(check(&request).unwrap_err().kind(), ErrorKind::InvalidArgument, "{request:?}");
        }
    }
}
