"""Specifications of the Container Device Interface: what those of this host describe, and one of its own GPUs."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

from . import _native
from .gpu import GpuRequest

__all__ = ["Devices", "devices", "spec"]


@dataclasses.dataclass(frozen=True)
class Devices:
    """What specifications describe."""

    #: By the names that a :class:`~gpucontainer.GpuRequest` can have, as in ``vendor.com/class=name``.
    names: tuple[str, ...]
    #: What could not be read, and what is described twice: a sentence each.
    problems: tuple[str, ...]


def devices(directories: Sequence[str | os.PathLike[str]] | None = None) -> Devices:
    """The devices that the specifications of this host describe.

    :param directories: where to look instead of ``/etc/cdi`` and ``/var/run/cdi``; later ones count before earlier.
    """
    names, problems = _native.cdi_devices(None if directories is None else list(directories))
    return Devices(tuple(names), tuple(problems))


def spec(
    gpus: int | str | Sequence[str] | GpuRequest = "all", *, driver_root: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """The specification of what sandboxes with these GPUs would be given, for other engines to read.

    :param driver_root: where the GPU driver's user space is, if not in the host's own root.
    """
    request = gpus if isinstance(gpus, GpuRequest) else GpuRequest(gpus)
    described: dict[str, Any] = json.loads(_native.cdi_spec(request._fields(), driver_root))
    return described
