"""MIG devices that are made, waited for and destroyed, and XIDs, on a stand-in for a machine with a split GPU."""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import signal as signals
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpucontainer import GpuAllocator, GpuRequest, MigDevices, XidWatch, errors

REPOSITORY = Path(__file__).resolve().parents[2]
FIRST = "GPU-b1000000-0000-4000-8000-000000000000"
SECOND = "GPU-b1000000-0000-4000-8000-000000000001"
THERE = "MIG-b10c0000-0000-5000-8000-000000000003"


class Machine:
    """A machine with one GPU in MIG mode and one that is whole."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "machine"
        subprocess.run([REPOSITORY / "tests/fake-host", "h100-mig", self.root], check=True)
        (self.description,) = self.root.glob("usr/lib/*/fake-nvml.json")
        self.allocator = GpuAllocator(directory / "table", driver_root=self.root, respect_outer=False)
        self.directory = directory

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self.description.read_text())
        return state

    def devices(self) -> list[str]:
        return [device["uuid"] for gpu in self.state()["gpus"] for device in gpu["mig"]["devices"]]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    if shutil.which("cargo") is None:
        pytest.skip("cargo is not installed")
    machine = Machine(tmp_path)
    before = machine.devices()
    yield machine
    assert machine.devices() == before, "what was made is gone"


def small(number: int = 1, **wishes: Any) -> GpuRequest:
    return GpuRequest(number, mig_profile="1g.10gb", **wishes)


def test_a_lease_makes_what_it_lacks(machine: Machine) -> None:
    with machine.allocator.acquire(small(make_mig_devices=False), timeout=0) as first:
        assert first.gpus == [THERE]
        with pytest.raises(errors.GpuUnavailableError, match="1 leased by process"):
            machine.allocator.acquire(small(make_mig_devices=False), timeout=0)
        with machine.allocator.acquire(small(), timeout=0) as second:
            assert second.gpus != [THERE] and second.gpus[0] in machine.devices()
            assert machine.allocator.status().leases_of(FIRST) != []
            with pytest.raises(errors.GpuUnavailableError, match=r"GPU 0 \(NVIDIA H100 80GB HBM3\) has no room beside"):
                machine.allocator.acquire(small(), timeout=0)
    with pytest.raises(errors.GpuUnavailableError, match=r"GPU 1 \(NVIDIA H100 80GB HBM3\) is not in MIG mode"):
        machine.allocator.acquire(small(9))
    named = GpuRequest([FIRST], mig_profile="1g.10gb+me")
    with machine.allocator.acquire(named, timeout=0) as media:
        assert len(media.gpus) == 1 and THERE not in media.gpus


def test_a_device_in_use_is_told_of(machine: Machine) -> None:
    both = machine.allocator.acquire(small(2), timeout=0)
    state = machine.state()
    healthy = json.dumps(state)
    state["gpus"][0]["mig"]["devices"][-1]["compute_processes"] = [{"pid": 4242}]
    machine.description.write_text(json.dumps(state))
    with pytest.raises(errors.BusyError, match="is used by process 4242"):
        both.release()
    machine.description.write_text(healthy)
    machine.allocator.status()


def test_a_place_in_the_queue_is_kept(machine: Machine) -> None:
    everything = machine.allocator.acquire(small(2), timeout=0)
    with machine.allocator.enqueue(small()) as ticket:
        assert ticket.wait(0) is None and "has no room beside" in ticket.reason
        assert ticket.wait(timeout=0.02) is None
        assert [waiting.pid for waiting in machine.allocator.status().waiting] == [os.getpid()]
        previous = signals.signal(signals.SIGALRM, signals.default_int_handler)
        signals.setitimer(signals.ITIMER_REAL, 0.2)
        try:
            with pytest.raises(KeyboardInterrupt):
                ticket.wait()
        finally:
            signals.signal(signals.SIGALRM, previous)
        assert len(machine.allocator.status().waiting) == 1, "the place is kept"
        everything.release()
        lease = None
        while lease is None:
            assert select.select([ticket], [], [], 60)[0], "nobody tells"
            lease = ticket.wait(0)
        assert select.select([ticket], [], [], 0)[0] == []
        assert lease is not None
        with pytest.raises(errors.ClosedError):
            ticket.wait(0)
    lease.release()
    with pytest.raises(errors.ClosedError):
        ticket.wait(0)
    with pytest.raises(errors.GpuUnavailableError):
        machine.allocator.enqueue(small(9))
    assert machine.allocator.status().waiting == ()


def test_devices_by_themselves(machine: Machine) -> None:
    devices = MigDevices(machine.directory / "mig", driver_root=machine.root)
    assert devices.directory == machine.directory / "mig" and "mig" in repr(devices)
    with pytest.raises(errors.GpuUnavailableError, match="is not in MIG mode"):
        devices.acquire("3g.40gb", [SECOND])
    with pytest.raises(TypeError):
        devices.acquire("3g.40gb", SECOND)
    assert devices.set_mode(SECOND, True) == "changed"
    assert devices.set_mode(SECOND, True) == "unchanged"
    with devices.acquire("3g.40gb", [SECOND]) as half:
        assert half.created and half.gpu == SECOND and half.device.profile == "3g.40gb"
        assert half.uuid == half.device.uuid and half.uuid in repr(half)
        with pytest.raises(errors.BusyError):
            devices.set_mode(SECOND, False)
    with devices.acquire("1g.10gb") as idle:
        assert (idle.uuid, idle.created) == (THERE, False)
    left = devices.acquire("7g.80gb")
    copy = os.dup(left.fileno())
    left.leave()
    with pytest.raises(errors.ClosedError):
        left.fileno()
    MigDevices(machine.directory / "mig", driver_root=machine.root)
    assert left.uuid in machine.devices(), "who has the descriptor has the lease"
    os.close(copy)
    MigDevices(machine.directory / "mig", driver_root=machine.root)
    assert left.uuid not in machine.devices()
    once = devices.acquire("7g.80gb")
    once.release()
    once.release()
    assert devices.set_mode(SECOND, False) == "changed"


def test_xids_are_told_of_as_they_come(machine: Machine) -> None:
    with XidWatch([FIRST, SECOND], driver_root=machine.root) as watch:
        (application,) = itertools.islice(watch, 1)
        # The next one as a loop waits for it.
        assert select.select([watch], [], [], 30.0)[0] == [watch]
        reset = watch.next(0)
        assert reset is not None and select.select([watch], [], [], 0)[0] == []
        assert (application.gpu, application.xid, application.action) == (SECOND, 31, "restart-application")
        assert (reset.gpu, reset.xid, reset.action, reset.slice) == (FIRST, 119, "reset-gpu", None)
        assert watch.next(timeout=0.01) is None
        assert reset.quarantines and not application.quarantines
        assert not machine.allocator.report_xid(application)
        assert machine.allocator.report_xid(reset) and not machine.allocator.report_xid(reset)
        (kept,) = machine.allocator.status().quarantined
        assert kept.gpu == FIRST and "XID 119" in kept.reason
        assert machine.allocator.readmit(FIRST)
        previous = signals.signal(signals.SIGALRM, signals.default_int_handler)
        signals.setitimer(signals.ITIMER_REAL, 0.2)
        try:
            with pytest.raises(KeyboardInterrupt):
                next(iter(watch))
        finally:
            signals.signal(signals.SIGALRM, previous)
    with pytest.raises(errors.ClosedError):
        watch.next(0)
    with pytest.raises(errors.GpuUnavailableError):
        XidWatch(["GPU-none"], driver_root=machine.root)
