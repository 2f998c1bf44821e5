"""GPU containers as a function call.

An image of one program of the host, and what that says:

```python
import gpucontainer

store = gpucontainer.ImageStore("images")
image = store.build().copy("/bin/busybox", "/bin/echo", follow_links=True).commit("first")
result = gpucontainer.run(image, ["echo", "hello"], stdout=gpucontainer.PIPE, text=True, store=store)
print(result.stdout, end="")
```

`run` is what `subprocess.run` is, and `Sandbox` what `subprocess.Popen` is: its options are those of `run`, and its process
has GPUs, limits, ports and a root file system of its own. `gpucontainer.aio` has both for `asyncio`. `ImageStore` pulls,
imports and builds images; `GpuAllocator` leases GPUs, `PortMapper` leads ports into networks, each without a sandbox too.
What goes wrong is a class of `gpucontainer.errors`. `gpucontainer.stand_in` and `python -m gpucontainer exec` put a
sandbox in the place of a program, and `gpucontainer.ray` in that of workers of Ray.
"""

from __future__ import annotations

# Loading `typing` would take most of the time that this module takes.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from . import aio, cdi
    from ._native import Cancel, Image, ImageBuilder, ImageStore, Progress, __version__
    from .becoming import enter
    from .completed import Completed, Usage, run
    from .errors import Error
    from .events import log_to
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
    from .limits import UNLIMITED, IoLimit, Limits, Mount
    from .mapper import ExposedServices, NetworkNamespace, PortMapper, Published, Reservation
    from .mig import MigDevices, MigLease
    from .network import NetworkMember, PrivateNetwork
    from .options import ExecOptions, SandboxOptions
    from .ports import HostService, Port, PortMapping, ServiceStatus, activated
    from .process import ExitStatus, Output, Process
    from .sandbox import Sandbox, collect_abandoned
    from .streams import DEVNULL, PIPE, STDOUT
    from .xid import XidEvent, XidWatch

__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "UNLIMITED",
    "Cancel",
    "Capability",
    "Completed",
    "Error",
    "ExecOptions",
    "ExitStatus",
    "ExposedServices",
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
    "HostService",
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
    "NetworkNamespace",
    "Output",
    "Port",
    "PortMapper",
    "PortMapping",
    "PrivateNetwork",
    "Process",
    "Progress",
    "Published",
    "QuarantinedGpu",
    "Reservation",
    "Sandbox",
    "SandboxOptions",
    "ServiceStatus",
    "TicketStatus",
    "Usage",
    "XidEvent",
    "XidWatch",
    "__version__",
    "activated",
    "aio",
    "cdi",
    "collect_abandoned",
    "enter",
    "log_to",
    "run",
]

#: Where each name is. A module is loaded when the first of its names is used, so that importing this one costs little.
_HOMES = {
    "DEVNULL": "streams",
    "PIPE": "streams",
    "STDOUT": "streams",
    "UNLIMITED": "limits",
    "Cancel": "_native",
    "Capability": "host",
    "Completed": "completed",
    "Error": "errors",
    "ExecOptions": "options",
    "ExitStatus": "process",
    "ExposedServices": "mapper",
    "Gpu": "host",
    "GpuAllocator": "gpu",
    "GpuGrant": "gpu",
    "GpuLease": "gpu",
    "GpuMemory": "host",
    "GpuRequest": "gpu",
    "GpuStatus": "gpu",
    "GpuTicket": "gpu",
    "HeldGpu": "gpu",
    "Host": "host",
    "HostService": "ports",
    "Image": "_native",
    "ImageBuilder": "_native",
    "ImageConfig": "image",
    "ImageStore": "_native",
    "IoLimit": "limits",
    "LeaseStatus": "gpu",
    "Limits": "limits",
    "MigDevice": "host",
    "MigDevices": "mig",
    "MigLease": "mig",
    "Mount": "limits",
    "Mps": "gpu",
    "MpsGroup": "gpu",
    "NetworkMember": "network",
    "NetworkNamespace": "mapper",
    "Output": "process",
    "Port": "ports",
    "PortMapper": "mapper",
    "PortMapping": "ports",
    "PrivateNetwork": "network",
    "Process": "process",
    "Progress": "_native",
    "Published": "mapper",
    "QuarantinedGpu": "gpu",
    "Reservation": "mapper",
    "Sandbox": "sandbox",
    "SandboxOptions": "options",
    "ServiceStatus": "ports",
    "TicketStatus": "gpu",
    "Usage": "completed",
    "XidEvent": "xid",
    "XidWatch": "xid",
    "__version__": "_native",
    "activated": "ports",
    "collect_abandoned": "sandbox",
    "enter": "becoming",
    "log_to": "events",
    "run": "completed",
}
_MODULES = ("aio", "cdi")


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
