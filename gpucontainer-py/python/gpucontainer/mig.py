"""MIG devices by themselves: one that is there and idle, or else one that is made, and destroyed in the end."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from . import _native
from .closing import Closing
from .host import MigDevice, _mig_device


class MigLease(Closing):
    """A MIG device that is the holder's; made by :meth:`MigDevices.acquire`.

    Leaving a ``with`` block gives it back, and so does dropping the last reference. If the holder dies, the device stays
    until the next process that opens the same :class:`MigDevices` destroys it.
    """

    def __init__(self, handle: _native._MigLease) -> None:
        self._handle = handle
        self._gpu, self._created, device = handle.fields()
        self._device = _mig_device(json.loads(device))

    @property
    def uuid(self) -> str:
        """The identifier of the device, by which a request can name it."""
        return self._device.uuid

    @property
    def device(self) -> MigDevice:
        """The device, as it was when it was taken."""
        return self._device

    @property
    def gpu(self) -> str:
        """The identifier of the GPU that it is a part of."""
        return self._gpu

    @property
    def created(self) -> bool:
        """Whether the device was made for this lease, and is destroyed with it."""
        return self._created

    def fileno(self) -> int:
        """The descriptor that holds the lease: a process that inherits it holds the lease too."""
        return self._handle.fileno()

    def release(self) -> None:
        """Gives the device back, and raises BusyError if a process still uses it. A second time does nothing."""
        self._handle.release()

    def leave(self) -> None:
        """Leaves the lease to those who inherited its descriptor."""
        self._handle.leave()

    def close(self) -> None:
        """Gives the device back without a word about errors."""
        self._handle.close()

    def __repr__(self) -> str:
        return f"<gpucontainer.MigLease {self.uuid} ({self._device.profile}) of {self._gpu}>"


class MigDevices:
    """The MIG devices of the host, as this library makes and destroys them.

    What a process made that died is destroyed by the next one that opens or acquires. An allocator does not know of
    leases that are taken here, nor are its known here: on one host take them from one of the two.
    """

    def __init__(self, directory: str | os.PathLike[str], *, driver_root: str | os.PathLike[str] | None = None) -> None:
        """Opens them, and destroys what dead owners left.

        :param directory: where leases are written down: on a tmpfs, writable for those only who may split GPUs.
        :param driver_root: where the GPU driver's user space is, if not in the host's own root.
        """
        self._handle = _native._MigDevices(directory, driver_root)

    @property
    def directory(self) -> Path:
        """Where leases are written down."""
        return self._handle.directory()

    def acquire(self, profile: str, among: Sequence[str] = ()) -> MigLease:
        """Takes a device of the profile, as in ``1g.10gb``.

        :param among: the identifiers of GPUs; none is any GPU.
        """
        if isinstance(among, str):
            raise TypeError("among is a list of identifiers, not one string")
        return MigLease(self._handle.acquire(profile, list(among)))

    def set_mode(self, gpu: str, enabled: bool) -> Literal["unchanged", "changed", "needs-reset", "unknown"]:
        """Switches MIG mode of a GPU on or off, by its identifier. Nothing else in this library does."""
        return self._handle.set_mode(gpu, enabled)

    def __repr__(self) -> str:
        return f"<gpucontainer.MigDevices {self.directory}>"
