"""GPU containers as a function call."""

from . import cdi
from ._native import Cancel, Image, ImageBuilder, ImageStore, Progress, __version__
from .errors import Error
from .gpu import (
    GpuAllocator,
    GpuGrant,
    GpuLease,
    GpuRequest,
    GpuStatus,
    GpuTicket,
    HeldGpu,
    LeaseStatus,
    Mps,
    MpsGroup,
    QuarantinedGpu,
    TicketStatus,
)
from .host import Capability, Gpu, GpuMemory, Host, MigDevice
from .image import ImageConfig
from .mig import MigDevices, MigLease
from .network import NetworkMember, PrivateNetwork
from .sandbox import (
    DEVNULL,
    PIPE,
    UNLIMITED,
    ExitStatus,
    IoLimit,
    Limits,
    Mount,
    Output,
    Port,
    Process,
    Sandbox,
    collect_abandoned,
)
from .xid import XidEvent, XidWatch

__all__ = [
    "DEVNULL",
    "PIPE",
    "UNLIMITED",
    "Cancel",
    "Capability",
    "Error",
    "ExitStatus",
    "Gpu",
    "GpuAllocator",
    "GpuGrant",
    "GpuLease",
    "GpuMemory",
    "GpuRequest",
    "GpuStatus",
    "GpuTicket",
    "HeldGpu",
    "Host",
    "Image",
    "ImageBuilder",
    "ImageConfig",
    "ImageStore",
    "IoLimit",
    "LeaseStatus",
    "Limits",
    "MigDevice",
    "MigDevices",
    "MigLease",
    "Mount",
    "Mps",
    "MpsGroup",
    "NetworkMember",
    "Output",
    "Port",
    "PrivateNetwork",
    "Process",
    "Progress",
    "QuarantinedGpu",
    "Sandbox",
    "TicketStatus",
    "XidEvent",
    "XidWatch",
    "__version__",
    "cdi",
    "collect_abandoned",
]
