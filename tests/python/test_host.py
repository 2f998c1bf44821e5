"""What the host can do."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

import gpucontainer
from gpucontainer import host as host_module


def test_the_probe_tells_about_this_host() -> None:
    host = gpucontainer.Host.probe()
    assert host.version == gpucontainer.__version__
    assert host.kernel == platform.release()
    assert host.architecture == platform.machine()
    assert host.user == os.geteuid()
    assert host.has("root") == (os.geteuid() == 0)
    assert not host.has("no-such-thing")
    assert host.capability("no-such-thing") is None
    kernel = host.capability("kernel")
    assert kernel is not None
    assert kernel.detail


def test_it_prints_as_a_table() -> None:
    host = gpucontainer.Host.probe()
    text = str(host)
    assert all(capability.name in text for capability in host.capabilities)


def test_it_cannot_be_changed() -> None:
    host = gpucontainer.Host.probe()
    with pytest.raises(AttributeError):
        host.user = 1  # type: ignore[misc]


def test_no_gpu_has_a_reason() -> None:
    host = gpucontainer.Host.probe()
    assert bool(host.gpus) == host.has("gpus")
    nvidia = [gpu for gpu in host.gpus if gpu.vendor.lower() == "nvidia"]
    assert nvidia or host.gpus_unavailable


def test_a_gpu_is_read_whole() -> None:
    facts = {
        "vendor": "nvidia",
        "uuid": "GPU-1",
        "index": 0,
        "name": "H200",
        "memory": {"total": 4, "free": 3},
        "compute_capability": [9, 0],
        "pci_bus_id": "0000:07:00.0",
        "mig_devices": [{"uuid": "MIG-1", "index": 2, "profile": "1g.18gb", "memory": None}],
        "mig_enabled": True,
        "minor": 3,
        "numa_node": 1,
        "cpu_affinity": [0, 1],
        "processes": [77],
        "nvlinks": [{"link": 0}, {"link": 1}],
        "fabric": None,
        "memory_nodes": [1],
        "brand": "nvidia",
        "render_nodes": ["/dev/dri/renderD128"],
        "health": {},
    }
    gpu = host_module._gpu(facts)
    assert gpu.compute_capability == (9, 0)
    assert gpu.memory == gpucontainer.GpuMemory(total=4, free=3)
    assert gpu.mig_devices[0].profile == "1g.18gb"
    assert (gpu.nvlinks, gpu.processes, gpu.numa_node) == (2, (77,), 1)
    assert (gpu.memory_nodes, gpu.brand, gpu.render_nodes) == ((1,), "nvidia", (Path("/dev/dri/renderD128"),))
    assert gpu.links[1] == {"link": 1} and gpu.fabric is None
