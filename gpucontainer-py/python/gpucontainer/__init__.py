"""GPU containers as a function call."""

from ._native import __version__
from .errors import Error
from .host import Capability, Gpu, GpuMemory, Host, MigDevice

__all__ = ["Capability", "Error", "Gpu", "GpuMemory", "Host", "MigDevice", "__version__"]
