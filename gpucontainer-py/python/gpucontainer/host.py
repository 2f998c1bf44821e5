"""What this host can do."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import _native
from .tables import Text


@dataclasses.dataclass(frozen=True)
class Capability:
    """Something that the host has or lacks."""

    #: A name that stays the same in later versions, as in ``user-namespaces``.
    name: str
    #: Whether the host has it, for this user.
    available: bool
    #: How it has it, or why it lacks it.
    detail: str


@dataclasses.dataclass(frozen=True)
class GpuMemory:
    """The memory of a GPU or a slice of one, in bytes, at the moment of the probe."""

    total: int
    free: int


@dataclasses.dataclass(frozen=True)
class MigDevice:
    """A slice of a GPU in MIG mode."""

    #: ``MIG-…``, stable while the slice exists.
    uuid: str
    #: The number of the slice among those of its GPU.
    index: int
    #: The profile, as in ``1g.10gb``; empty if the driver does not say.
    profile: str
    memory: GpuMemory | None


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One GPU of the host."""

    vendor: str
    #: ``GPU-…`` for NVIDIA.
    uuid: str
    #: Its place among the GPUs of its vendor, by bus address, from 0. May change at a reboot.
    index: int
    #: The name of the product.
    name: str
    memory: GpuMemory | None
    #: The CUDA compute capability, as in ``(9, 0)``; NVIDIA only.
    compute_capability: tuple[int, int] | None
    #: The bus address, as in ``0000:07:00.0``.
    pci_bus_id: str
    #: Its slices; empty if it is not split.
    mig_devices: tuple[MigDevice, ...]
    #: Whether it is split, that is, in MIG mode.
    mig_enabled: bool
    #: The number in its device node, which is not the index.
    minor: int
    #: The NUMA node that it is attached to; None on a host with one node.
    numa_node: int | None
    #: The processors near to it; empty if unknown.
    cpu_affinity: tuple[int, ...]
    #: The processes of the host that use it, or a slice of it.
    processes: tuple[int, ...]
    #: How many NVLinks are up.
    nvlinks: int
    #: Those NVLinks, by the names of the Rust library's ``NvLink``.
    links: tuple[Mapping[str, Any], ...]
    #: The NVLink fabric that it has joined, by the names of the Rust library's ``Fabric``; None if it has joined none.
    fabric: Mapping[str, Any] | None
    #: The NUMA nodes whose memory is near to it; empty if unknown.
    memory_nodes: tuple[int, ...]
    #: The brand as requirements of images name it, as in ``tesla``; NVIDIA only.
    brand: str | None
    #: Further device nodes of it, below ``/dev/dri``, for drawing.
    render_nodes: tuple[Path, ...]
    #: What it says of its own condition, by the names of the Rust library's ``GpuHealth``.
    health: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Host:
    """What this host can do, for the user who asks; a snapshot. ``str()`` is a table for people."""

    #: The version of the library.
    version: str
    #: The kernel's release, as in ``6.12.5-amd64``.
    kernel: str
    #: As in ``x86_64``.
    architecture: str
    #: The effective user of this process.
    user: int
    #: The directory of the user's images; it need not exist. None if the environment names none.
    store: Path | None
    #: Everything that was looked for, in a fixed order.
    capabilities: tuple[Capability, ...]
    gpus: tuple[Gpu, ...]
    #: Why no NVIDIA GPU can be used; None if one can.
    gpus_unavailable: str | None
    #: The version of the NVIDIA driver, if there is one.
    driver_version: str | None
    #: The newest CUDA version that the NVIDIA driver supports, as in ``(12, 4)``, if there is one.
    cuda_version: tuple[int, int] | None
    #: What lies between each two GPUs, by the names of the Rust library's ``GpuPair``.
    gpu_pairs: tuple[Mapping[str, Any], ...]
    #: What went wrong with single GPUs, each of which is left out or lacks what could not be read.
    gpu_problems: tuple[str, ...]
    _text: str = dataclasses.field(repr=False, compare=False)

    @staticmethod
    def probe() -> Host:
        """Looks at everything that matters to a container. Changes nothing."""
        encoded, text = _native.probe()
        facts: dict[str, Any] = json.loads(encoded)
        inventory = facts["gpus"]
        return Host(
            version=facts["version"],
            kernel=facts["kernel"],
            architecture=facts["architecture"],
            user=facts["user"],
            store=None if facts["store"] is None else Path(facts["store"]),
            capabilities=tuple(Capability(**capability) for capability in facts["capabilities"]),
            gpus=tuple(_gpu(gpu) for gpu in inventory["gpus"]),
            gpus_unavailable=inventory["unavailable"],
            driver_version=inventory["driver_version"],
            cuda_version=_pair(inventory["cuda_version"]),
            gpu_pairs=tuple(inventory["pairs"]),
            gpu_problems=tuple(inventory["problems"]),
            _text=text,
        )

    @staticmethod
    def topology() -> Text:
        """How near the GPUs are to each other at this moment, as a table: ``NV12`` is twelve NVLinks."""
        return Text(_native.topology())

    def capability(self, name: str) -> Capability | None:
        """The capability of that name, if it is one that is looked for."""
        return next((capability for capability in self.capabilities if capability.name == name), None)

    def has(self, name: str) -> bool:
        """Whether the host has the capability of that name."""
        capability = self.capability(name)
        return capability is not None and capability.available

    def __str__(self) -> str:
        return self._text

    def _repr_html_(self) -> str:
        return Text(self._text)._repr_html_()


def _memory(facts: dict[str, int] | None) -> GpuMemory | None:
    return None if facts is None else GpuMemory(total=facts["total"], free=facts["free"])


def _mig_device(facts: dict[str, Any]) -> MigDevice:
    return MigDevice(
        uuid=facts["uuid"],
        index=facts["index"],
        profile=facts["profile"],
        memory=_memory(facts["memory"]),
    )


def _pair(numbers: list[int] | None) -> tuple[int, int] | None:
    return None if numbers is None else (numbers[0], numbers[1])


def _gpu(facts: dict[str, Any]) -> Gpu:
    return Gpu(
        vendor=facts["vendor"],
        uuid=facts["uuid"],
        index=facts["index"],
        name=facts["name"],
        memory=_memory(facts["memory"]),
        compute_capability=_pair(facts["compute_capability"]),
        pci_bus_id=facts["pci_bus_id"],
        mig_devices=tuple(_mig_device(device) for device in facts["mig_devices"]),
        mig_enabled=facts["mig_enabled"],
        minor=facts["minor"],
        numa_node=facts["numa_node"],
        cpu_affinity=tuple(facts["cpu_affinity"]),
        processes=tuple(facts["processes"]),
        nvlinks=len(facts["nvlinks"]),
        links=tuple(facts["nvlinks"]),
        fabric=facts["fabric"],
        memory_nodes=tuple(facts["memory_nodes"]),
        brand=facts["brand"],
        render_nodes=tuple(Path(node) for node in facts["render_nodes"]),
        health=facts["health"],
    )
