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
    HeldGpu,
    LeaseStatus,
    Mps,
    MpsGroup,
    QuarantinedGpu,
    TicketStatus,
)
from .host import Capability, Gpu, GpuMemory, Host, MigDevice
from .image import ImageConfig
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
    "Mount",
    "Mps",
    "MpsGroup",
    "Output",
    "Port",
    "Process",
    "Progress",
    "QuarantinedGpu",
    "Sandbox",
    "TicketStatus",
    "__version__",
    "cdi",
    "collect_abandoned",
]
