"""XIDs, the error reports of NVIDIA's driver, as they come."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Literal

from . import _native
from .closing import Closing


@dataclasses.dataclass(frozen=True)
class XidEvent:
    """An XID that the driver reported."""

    #: The identifier of the GPU, also where the event is about a slice of it.
    gpu: str
    xid: int
    #: What has to be done, after NVIDIA's catalogue.
    action: Literal["ignore", "restart-application", "reset-gpu", "restart-machine", "inspect"]
    #: Whether a GPU is kept from new leases for it.
    quarantines: bool
    #: GPU instance and compute instance, if it is about a slice.
    slice: tuple[int, int] | None


class XidWatch(Closing):
    """Watches GPUs for XIDs from the moment on when it is opened; iterating waits for each, without end.

    It has no thread, and nothing is seen but in :meth:`next`, unless :meth:`fileno` was called. The driver's management
    library stays loaded until :meth:`close`, and must not be used after a fork.
    """

    def __init__(self, gpus: Sequence[str], *, driver_root: str | os.PathLike[str] | None = None) -> None:
        """Begins to watch.

        :param gpus: their identifiers.
        :param driver_root: where the GPU driver's user space is, if not in the host's own root.
        """
        if isinstance(gpus, str):
            raise TypeError("gpus is a list of identifiers, not one string")
        self._handle = _native._XidWatch(list(gpus), driver_root)

    def next(self, timeout: float | None = None) -> XidEvent | None:
        """Waits for the next XID; None when the time has passed.

        :param timeout: seconds; None is for ever, and 0 only looks.
        """
        fields = self._handle.next(timeout)
        return None if fields is None else XidEvent(*fields)

    def fileno(self) -> int:
        """A descriptor for :mod:`select` and for the loop of :mod:`asyncio`: readable as long as ``next(0)`` has something to
        say, an XID or that the driver has failed.

        The driver has none to give: when this is first called, a thread starts to wait there. It ends with :meth:`close`,
        which takes up to a quarter of a second then. Nothing is to be read from the descriptor.
        """
        return self._handle.fileno()

    def __iter__(self) -> Iterator[XidEvent]:
        while True:
            event = self.next()
            if event is not None:
                yield event

    def close(self) -> None:
        """Ends the watch. A second time does nothing."""
        self._handle.close()
