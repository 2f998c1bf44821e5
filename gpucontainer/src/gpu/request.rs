//! What a caller asks for: which GPUs, and which parts of the driver with them.

pub(in crate::gpu) mod environment;
mod extras;
mod service;

pub use extras::DriverExtra;
pub(in crate::gpu) use extras::{Channels, Extras, MAX_CHANNEL};

use crate::error::{Error, ErrorKind, Result};
use crate::gpu::allocator::{Access, Wishes};
use crate::gpu::cdi::{DeviceName, Reading};

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// A list longer than this is no list of GPUs: the largest hosts have 16, each split into at most 7.
const MAX_NAMES: usize = 256;

/// The longest identifier that is accepted, in bytes; NVML's own limit for one.
const MAX_IDENTIFIER: usize = 96;

/// Who made a GPU, and hence whose driver serves it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Vendor {
    /// NVIDIA, through its proprietary user space and management library.
    #[default]
    Nvidia,
    /// AMD, through `amdgpu`: the image brings its own user space.
    Amd,
    /// Intel, through `i915` or `xe`: the image brings its own user space.
    Intel,
}

impl fmt::Display for Vendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nvidia => "NVIDIA",
            Self::Amd => "AMD",
            Self::Intel => "Intel",
        })
    }
}

/// A part of NVIDIA's driver that a container may be given.
///
/// The names are those of the variable `NVIDIA_DRIVER_CAPABILITIES` that images set.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum DriverCapability {
    /// CUDA and OpenCL.
    Compute,
    /// `nvidia-smi` and the management library.
    Utility,
    /// OpenGL, EGL and Vulkan, without a display; brings the render node of the GPU.
    Graphics,
    /// As [`Graphics`](Self::Graphics), and mode setting for a display.
    Display,
    /// Video encoding, decoding and optical flow; brings the libraries of [`Compute`](Self::Compute).
    Video,
    /// The neural graphics library.
    Ngx,
    /// The 32-bit twins of the libraries of the other capabilities, as far as the host has them.
    ///
    /// They go where the image's 32-bit loader looks. That 32-bit programs run at all is for the caller to allow: the
    /// default system call filter kills them.
    Compat32,
}

impl DriverCapability {
    /// Every capability, in the order of their declaration.
    pub const ALL: [Self; 7] =
        [Self::Compute, Self::Utility, Self::Graphics, Self::Display, Self::Video, Self::Ngx, Self::Compat32];

    /// The name that `NVIDIA_DRIVER_CAPABILITIES` uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Compute => "compute",
            Self::Utility => "utility",
            Self::Graphics => "graphics",
            Self::Display => "display",
            Self::Video => "video",
            Self::Ngx => "ngx",
            Self::Compat32 => "compat32",
        }
    }

    /// Reads a list such as `utility,compute`; `all` stands for every capability.
    ///
    /// Spaces around names are ignored, so are empty elements; an empty list is the default,
    /// `compute` and `utility`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for an unknown name.
    pub fn parse_list(list: &str) -> Result<BTreeSet<Self>> {
        let mut capabilities = BTreeSet::new();
        for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            if name == "all" {
                capabilities.extend(Self::ALL);
                continue;
            }
            let known = Self::ALL.into_iter().find(|capability| capability.name() == name);
            capabilities.insert(known.ok_or_else(|| {
                Error::new(ErrorKind::InvalidArgument, format!("driver capability {name:?} is none of {}", names()))
            })?);
        }
        Ok(if capabilities.is_empty() { default_capabilities() } else { capabilities })
    }
}

impl fmt::Display for DriverCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn names() -> String {
    DriverCapability::ALL.map(DriverCapability::name).join(", ")
}

fn default_capabilities() -> BTreeSet<DriverCapability> {
    BTreeSet::from([DriverCapability::Compute, DriverCapability::Utility])
}

/// How a request names one GPU, or one slice of a GPU.
#[derive(Clone, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum GpuName {
    /// The identifier of a GPU (`GPU-…`) or of a MIG device (`MIG-…`): stable over reboots.
    Uuid(String),
    /// The index of a GPU: its place among the GPUs by bus address, which may change at a reboot.
    Index(u32),
    /// The index of a GPU, and the index of a MIG device on it: written `0:1`.
    MigIndex(u32, u32),
    /// A device of a specification of the Container Device Interface: `vendor.com/class=name`, of any vendor and
    /// class.
    Cdi(DeviceName),
}

impl fmt::Display for GpuName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid(uuid) => f.write_str(uuid),
            Self::Index(index) => write!(f, "{index}"),
            Self::MigIndex(gpu, mig) => write!(f, "{gpu}:{mig}"),
            Self::Cdi(name) => name.fmt(f),
        }
    }
}

impl FromStr for GpuName {
    type Err = Error;

    /// Reads `GPU-…`, `MIG-…`, an index, two indices with a colon between them, or `vendor.com/class=name`.
    fn from_str(text: &str) -> Result<Self> {
        let refuse = |why: &str| Error::new(ErrorKind::InvalidArgument, format!("GPU name {text:?}: {why}"));
        let number = |digits: &str| {
            let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| digits.parse::<u32>().ok()).flatten()
        };
        if let Some(index) = number(text) {
            return Ok(Self::Index(index));
        }
        // No other name has this sign.
        if text.contains('=') {
            return text.parse().map(Self::Cdi);
        }
        if let Some((gpu, mig)) = text.split_once(':') {
            let pair = number(gpu).zip(number(mig));
            return pair
                .map(|(gpu, mig)| Self::MigIndex(gpu, mig))
                .ok_or_else(|| refuse("a MIG device is named by two numbers, the GPU's index and its own, as in 0:1"));
        }
        if text.len() > MAX_IDENTIFIER {
            return Err(refuse("longer than any identifier"));
        }
        let identifier = |rest: &str| {
            !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-/:._".contains(&byte))
        };
        if text.split_once('-').is_some_and(|(kind, rest)| is_kind(kind) && identifier(rest)) {
            return Ok(Self::Uuid(text.to_owned()));
        }
        Err(refuse("neither an index nor an identifier such as GPU-… or MIG-…"))
    }
}

impl TryFrom<&str> for GpuName {
    type Error = Error;

    /// As `parse`.
    fn try_from(text: &str) -> Result<Self> {
        text.parse()
    }
}

impl TryFrom<String> for GpuName {
    type Error = Error;

    /// As `parse`.
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

fn is_kind(kind: &str) -> bool {
    matches!(kind, "GPU" | "MIG" | "AMD" | "INTEL")
}

/// Which GPUs.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Which {
    /// Neither GPUs nor anything of a driver.
    None,
    /// The driver's libraries, and no GPU.
    DriverOnly,
    /// Every GPU; MIG devices of those that are split.
    All,
    /// So many.
    Count(u32),
    /// These.
    Named(Vec<GpuName>),
    /// Those that the image's environment names.
    AsImageSays,
}

/// Which GPUs a container is to get, and which parts of the driver.
///
/// ```
/// use gpucontainer::gpu::{DriverCapability, GpuRequest};
///
/// let two_large = GpuRequest::count(2).min_free_memory(40 << 30);
/// let named = GpuRequest::uuids(["GPU-1f2e3d4c-0000-0000-0000-000000000000"])?;
/// let like_other_engines: GpuRequest = "0,1".parse()?;
/// let with_video = GpuRequest::all().capabilities([DriverCapability::Video, DriverCapability::Utility]);
/// # Ok::<(), gpucontainer::Error>(())
/// ```
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[must_use]
pub struct GpuRequest {
    which: Which,
    vendor: Vendor,
    min_free_memory: u64,
    /// `None` is what the image says, or else the default.
    capabilities: Option<BTreeSet<DriverCapability>>,
    multi_process_service: bool,
    /// What the lease has of a daemon of its own.
    #[serde(default)]
    access: Option<Access>,
    #[serde(default)]
    pub(in crate::gpu) extras: Extras,
    #[serde(default)]
    pub(in crate::gpu) wishes: Wishes,
    #[serde(default)]
    pub(in crate::gpu) reading: Reading,
}

impl Default for GpuRequest {
    /// As [`GpuRequest::none`].
    fn default() -> Self {
        Self::none()
    }
}

impl GpuRequest {
    fn new(which: Which) -> Self {
        Self {
            which,
            vendor: Vendor::default(),
            min_free_memory: 0,
            capabilities: None,
            multi_process_service: false,
            access: None,
            extras: Extras::default(),
            wishes: Wishes::default(),
            reading: Reading::default(),
        }
    }

    /// Asks for nothing: no GPU, no driver.
    pub fn none() -> Self {
        Self::new(Which::None)
    }

    /// Asks for every GPU of the host; a host without one cannot fulfil it.
    ///
    /// Of a GPU in MIG mode, its MIG devices are meant.
    pub fn all() -> Self {
        Self::new(Which::All)
    }

    /// Asks for what the image's environment names: `NVIDIA_VISIBLE_DEVICES`, as [`parse`](str::parse) reads it.
    ///
    /// Without that variable nothing is asked for, unless the image is of the time before it: then it has
    /// `CUDA_VERSION`, and is meant to see every GPU. `NVIDIA_GDS`, `NVIDIA_MOFED`, `NVIDIA_GDRCOPY` and
    /// `NVIDIA_NVSWITCH` (if `enabled`), and `NVIDIA_IMEX_CHANNELS`, ask for [`DriverExtra`]s. `NVIDIA_MIG_CONFIG_DEVICES`
    /// and `NVIDIA_MIG_MONITOR_DEVICES` ask in vain: an image that wants GPUs and has one of them as `all` is refused
    /// unless [`extras`](Self::extras) give the right.
    ///
    /// The environment is that of the image with the caller's own variables over it.
    pub fn as_image_says() -> Self {
        Self::new(Which::AsImageSays)
    }

    /// The same request, with what is left to the image taken from the environment `environment`: which GPUs, if
    /// [`as_image_says`](Self::as_image_says) asked, and `NVIDIA_DRIVER_CAPABILITIES`, if
    /// [`capabilities`](Self::capabilities) did not say.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if a variable is not understood, [`ErrorKind::PermissionDenied`] if the image asks
    /// for a right that the request does not give; the text names it.
    pub fn for_environment(&self, environment: &[(String, String)]) -> Result<Self> {
        environment::resolve(self, environment)
    }

    /// Asks for any `number` of GPUs; 0 is the same as [`none`](Self::none).
    ///
    /// GPUs that no process uses come first, then those with the lower index. MIG devices are
    /// counted only on a host that has nothing but GPUs in MIG mode.
    pub fn count(number: u32) -> Self {
        Self::new(if number == 0 { Which::None } else { Which::Count(number) })
    }

    /// Asks for these GPUs or MIG devices, by identifier. An identifier that comes twice counts once.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if the list is empty, or one of them is no identifier.
    pub fn uuids<S: AsRef<str>>(uuids: impl IntoIterator<Item = S>) -> Result<Self> {
        let mut names = Vec::new();
        for uuid in uuids {
            match uuid.as_ref().parse()? {
                name @ GpuName::Uuid(_) => names.push(name),
                other => {
                    return Err(Error::new(ErrorKind::InvalidArgument, format!("{other} is an index, no identifier")));
                }
            }
        }
        Self::named(names)
    }

    /// Asks for these GPUs, by index. An index that comes twice counts once.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if the list is empty.
    pub fn indices(indices: impl IntoIterator<Item = u32>) -> Result<Self> {
        Self::named(indices.into_iter().map(GpuName::Index))
    }

    /// Asks for these GPUs or MIG devices, or for devices of CDI specifications, however named. A name that comes
    /// twice counts once.
    ///
    /// ```
    /// use gpucontainer::GpuRequest;
    ///
    /// let request = GpuRequest::named(["0", "MIG-4f2c9d1e-0000-0000-0000-000000000000", "amd.com/gpu=1"])?;
    /// # Ok::<(), gpucontainer::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if the list is empty, or longer than any host has GPUs, or a text in it is no
    /// name.
    pub fn named<N>(names: impl IntoIterator<Item = N>) -> Result<Self>
    where
        N: TryInto<GpuName>,
        Error: From<N::Error>,
    {
        let mut unique = Vec::new();
        for name in names {
            let name = name.try_into()?;
            if !unique.contains(&name) {
                unique.push(name);
            }
            if unique.len() > MAX_NAMES {
                return Err(Error::new(ErrorKind::InvalidArgument, format!("more than {MAX_NAMES} GPUs are named")));
            }
        }
        if unique.is_empty() {
            return Err(Error::new(ErrorKind::InvalidArgument, "a list of GPUs must name at least one"));
        }
        Ok(Self::new(Which::Named(unique)))
    }

    /// Wants at least `bytes` of free memory on each GPU. 0, the default, wants nothing.
    pub fn min_free_memory(mut self, bytes: u64) -> Self {
        self.min_free_memory = bytes;
        self
    }

    /// Replaces the parts of the driver that come with the GPUs. By default what the image says in
    /// `NVIDIA_DRIVER_CAPABILITIES`; `compute` and `utility` if it says nothing.
    ///
    /// An empty list gives device nodes and no libraries: for an image that brings the driver's user
    /// space itself. GPUs of other vendors than NVIDIA ignore it.
    pub fn capabilities(mut self, capabilities: impl IntoIterator<Item = DriverCapability>) -> Self {
        self.capabilities = Some(capabilities.into_iter().collect());
        self
    }

    /// Asks for further parts of NVIDIA's software that come with their own devices. None by default.
    pub fn extras(mut self, extras: impl IntoIterator<Item = DriverExtra>) -> Self {
        self.extras.parts = extras.into_iter().collect();
        self
    }

    /// Asks for channels through which GPUs of several hosts share memory (IMEX), by number, 0 to 1,048,575. None by
    /// default.
    ///
    /// A grant for a higher number fails with [`ErrorKind::InvalidArgument`].
    pub fn imex_channels(mut self, channels: impl IntoIterator<Item = u32>) -> Self {
        self.extras.channels = Channels::Numbered(channels.into_iter().collect());
        self
    }

    /// Asks for GPUs of another vendor than NVIDIA.
    pub fn vendor(mut self, vendor: Vendor) -> Self {
        self.vendor = vendor;
        self
    }

    /// The request for what a lease of `devices` stands for: those, and all devices of specifications that were named.
    pub(in crate::gpu) fn leased(&self, devices: &[String]) -> Self {
        let (described, _) = self.split();
        let covered: Vec<&String> = self.wishes.described.values().flatten().collect();
        let own = devices.iter().filter(|device| !covered.contains(device)).cloned().map(GpuName::Uuid);
        let which = Which::Named(described.into_iter().map(GpuName::Cdi).chain(own).collect());
        Self { which, min_free_memory: 0, wishes: Wishes::default(), ..self.clone() }
    }

    /// Whether nothing at all is asked for.
    pub fn is_none(&self) -> bool {
        self.which == Which::None
    }

    pub(crate) fn which(&self) -> &Which {
        &self.which
    }

    /// The same for these GPUs.
    pub(crate) fn only(mut self, names: Vec<GpuName>) -> Self {
        self.which = Which::Named(names);
        self
    }

    pub(crate) fn wanted_vendor(&self) -> Vendor {
        self.vendor
    }

    pub(crate) fn wanted_memory(&self) -> u64 {
        self.min_free_memory
    }

    pub(crate) fn wants(&self, capability: DriverCapability) -> bool {
        let default = default_capabilities();
        let chosen = self.capabilities.as_ref().unwrap_or(&default);
        let has = |capability| chosen.contains(&capability);
        match capability {
            DriverCapability::Compute => has(capability) || has(DriverCapability::Video),
            DriverCapability::Graphics => has(capability) || has(DriverCapability::Display),
            other => has(other),
        }
    }

    pub(crate) fn wants_driver(&self) -> bool {
        self.capabilities.as_ref().is_none_or(|chosen| !chosen.is_empty()) && self.vendor == Vendor::Nvidia
    }
}

impl FromStr for GpuRequest {
    type Err = Error;

    /// Reads what images and engines write into `NVIDIA_VISIBLE_DEVICES`.
    ///
    /// `all`; `none` (the driver without a GPU); `void` or nothing (neither); or a list with commas
    /// of identifiers, indices, MIG indices (`0:1`) and CDI names (`vendor.com/class=name`). `void` anywhere in a
    /// list wins; otherwise the first of `all` and `none` does. Spaces around elements and empty elements are ignored.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for anything else; also for a list of nothing but commas.
    fn from_str(text: &str) -> Result<Self> {
        if text.trim().is_empty() {
            return Ok(Self::none());
        }
        let elements: Vec<&str> = text.split(',').map(str::trim).filter(|element| !element.is_empty()).collect();
        if elements.contains(&"void") {
            return Ok(Self::none());
        }
        match elements.iter().find(|element| matches!(**element, "all" | "none")) {
            Some(&"all") => Ok(Self::all()),
            Some(_) => Ok(Self::new(Which::DriverOnly)),
            None => Self::named(elements.into_iter().map(str::parse).collect::<Result<Vec<GpuName>>>()?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(text: &str) -> Vec<String> {
        match text.parse::<GpuRequest>().unwrap().which() {
            Which::Named(names) => names.iter().map(GpuName::to_string).collect(),
            other => panic!("{text:?} gave {other:?}"),
        }
    }

    #[test]
    fn the_variable_of_other_engines_is_understood() {
        let table = [
            ("", Which::None),
            ("  ", Which::None),
            ("void", Which::None),
            ("all,void", Which::None),
            ("0,void", Which::None),
            ("all", Which::All),
            ("0,all", Which::All),
            ("all,none", Which::All),
            ("none", Which::DriverOnly),
            ("none,all", Which::DriverOnly),
            ("none,0", Which::DriverOnly),
        ];
        for (text, which) in table {
            assert_eq!(*text.parse::<GpuRequest>().unwrap().which(), which, "{text:?}");
        }
        assert_eq!(names("0"), ["0"]);
        assert_eq!(names(" 1 ,, 0 ,"), ["1", "0"], "order is kept, emptiness dropped");
        assert_eq!(names("0,0,1,0"), ["0", "1"], "a repeated name counts once");
        assert_eq!(names("0:1,MIG-4f2c/1/0"), ["0:1", "MIG-4f2c/1/0"]);
        assert_eq!(names("amd.com/gpu=1,nvidia.com/gpu=0:1,0"), ["amd.com/gpu=1", "nvidia.com/gpu=0:1", "0"]);
        assert_eq!(names("GPU-1f2e3d4c-1111-2222-3333-444444444444").len(), 1);
    }

    #[test]
    fn what_names_no_gpu_is_refused_and_named() {
        let many = (0..300).map(|index| index.to_string()).collect::<Vec<_>>().join(",");
        let long = format!("GPU-{}", "a".repeat(100));
        for text in
            [",", " , ", "ALL", "-1", "+1", "0x1", "0:", ":0", "0:1:2", "GPU-", "GPU", "4294967296", &many, &long]
        {
            let error = text.parse::<GpuRequest>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{text:?}: {error}");
        }
        assert!("GPU-1,bogus".parse::<GpuRequest>().unwrap_err().to_string().contains("\"bogus\""));
        assert!(GpuRequest::uuids(["0"]).is_err());
        assert!(GpuRequest::uuids::<&str>([]).is_err());
        assert!(GpuRequest::indices([]).is_err());
    }

    #[test]
    fn capabilities_are_read_and_imply_each_other() {
        assert_eq!(DriverCapability::parse_list("").unwrap(), default_capabilities());
        assert_eq!(DriverCapability::parse_list("all").unwrap().len(), DriverCapability::ALL.len());
        assert_eq!(DriverCapability::parse_list("utility, utility").unwrap(), [DriverCapability::Utility].into());
        let error = DriverCapability::parse_list("compute,warp").unwrap_err();
        assert!(error.to_string().contains("\"warp\""), "{error}");
        let video = GpuRequest::count(1).capabilities([DriverCapability::Video]);
        assert!(video.wants(DriverCapability::Compute) && !video.wants(DriverCapability::Utility));
        let display = GpuRequest::count(1).capabilities([DriverCapability::Display]);
        assert!(display.wants(DriverCapability::Graphics) && !display.wants(DriverCapability::Compute));
    }

    #[test]
    fn a_request_survives_being_written_and_read() {
        let request = GpuRequest::named(["0:1", "GPU-1", "amd.com/gpu=1"]).unwrap().min_free_memory(5);
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<GpuRequest>(&text).unwrap(), request);
        assert!(GpuRequest::count(0).is_none() && GpuRequest::default().is_none());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,64}") {
            let _ = text.parse::<GpuRequest>();
            let _ = DriverCapability::parse_list(&text);
        }

        #[test]
        fn names_are_printed_as_they_are_read(gpu in any::<u32>(), mig in any::<u32>()) {
            for name in [GpuName::Index(gpu), GpuName::MigIndex(gpu, mig)] {
                prop_assert_eq!(name.to_string().parse::<GpuName>().unwrap(), name);
            }
        }
    }
}
