"""GPU containers as a function call."""

from ._native import Cancel, Image, ImageBuilder, ImageStore, Progress, __version__
from .errors import Error
from .host import Capability, Gpu, GpuMemory, Host, MigDevice
from .image import ImageConfig
from .sandbox import DEVNULL, PIPE, UNLIMITED, ExitStatus, Limits, Mount, Output, Port, Process, Sandbox

__all__ = [
    "DEVNULL",
    "PIPE",
    "UNLIMITED",
    "Cancel",
    "Capability",
    "Error",
    "ExitStatus",
    "Gpu",
    "GpuMemory",
    "Host",
    "Image",
    "ImageBuilder",
    "ImageConfig",
    "ImageStore",
    "Limits",
    "MigDevice",
    "Mount",
    "Output",
    "Port",
    "Process",
    "Progress",
    "Sandbox",
    "__version__",
]
