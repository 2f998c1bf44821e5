"""Requests for GPUs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class GpuRequest:
    """Which GPUs, and which parts of the driver with them."""

    #: How many, ``"all"``, indices as in ``"0,1"``, or identifiers.
    gpus: int | str | Sequence[str]
    _: dataclasses.KW_ONLY
    #: Bytes that must be free on each GPU.
    min_free_memory: int = 0
    #: The parts of the driver, by the names of ``NVIDIA_DRIVER_CAPABILITIES``; ``compute`` and ``utility`` if None.
    #: An empty list gives device nodes without libraries.
    capabilities: Sequence[str] | None = None
    #: Whether a running Multi-Process Service is shared with the container.
    multi_process_service: bool = False

    def _fields(self) -> dict[str, Any]:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if isinstance(self.capabilities, str):
            raise TypeError("capabilities is a list of names, not one string")
        return {name: value for name, value in fields.items() if value is not None}
