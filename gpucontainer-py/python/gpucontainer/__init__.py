"""GPU containers as a function call."""

from ._native import Cancel, Image, ImageBuilder, ImageStore, Progress, __version__
from .errors import Error
from .host import Capability, Gpu, GpuMemory, Host, MigDevice
from .image import ImageConfig

__all__ = [
    "Cancel",
    "Capability",
    "Error",
    "Gpu",
    "GpuMemory",
    "Host",
    "Image",
    "ImageBuilder",
    "ImageConfig",
    "ImageStore",
    "MigDevice",
    "Progress",
    "__version__",
]
