"""NVIDIA's own Python package on the stand-in for its management library that other tests use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

# Prints the machine for each line of its input.
PROGRAM = """
import json, sys
import pynvml as nvml

nvml.nvmlInit()
for _ in sys.stdin:
    gpus = []
    for index in range(nvml.nvmlDeviceGetCount()):
        device = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(device, version=nvml.nvmlMemory_v2)
        links = [link for link in range(12) if nvml.nvmlDeviceGetNvLinkState(device, link)]
        fabric = nvml.c_nvmlGpuFabricInfo_v2_t()
        try:
            nvml.nvmlDeviceGetGpuFabricInfoV(device, nvml.byref(fabric))
            clique = fabric.cliqueId
        except nvml.NVMLError_NotSupported:
            clique = None
        gpus.append({
            "name": nvml.nvmlDeviceGetName(device),
            "uuid": nvml.nvmlDeviceGetUUID(device),
            "minor": nvml.nvmlDeviceGetMinorNumber(device),
            "bus": nvml.nvmlDeviceGetPciInfo(device).busId,
            "capability": nvml.nvmlDeviceGetCudaComputeCapability(device),
            "free": memory.free,
            "links": len(links),
            "remote": nvml.nvmlDeviceGetNvLinkRemotePciInfo(device, links[0]).busId,
            "clique": clique,
            "nodes": nvml.nvmlDeviceGetMemoryAffinity(device, 1, nvml.NVML_AFFINITY_SCOPE_NODE)[0],
            "rows": nvml.nvmlDeviceGetRemappedRows(device),
            "processes": [process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(device)],
        })
    first, second = (nvml.nvmlDeviceGetHandleByIndex(index) for index in (0, 1))
    print(json.dumps({
        "driver": nvml.nvmlSystemGetDriverVersion(),
        "cuda": nvml.nvmlSystemGetCudaDriverVersion(),
        "ancestor": nvml.nvmlDeviceGetTopologyCommonAncestor(first, second),
        "gpus": gpus,
    }), flush=True)
nvml.nvmlShutdown()
"""


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A directory with the stand-in, by the name that programs load, as a DGX A100."""
    try:
        version("nvidia-ml-py")
    except PackageNotFoundError:
        pytest.skip("nvidia-ml-py is not installed")
    cargo = shutil.which("cargo")
    if cargo is None:
        pytest.skip("cargo is not installed")
    target = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
    subprocess.run(
        [cargo, "build", "--quiet", "--offline", "--package", "fake-nvml", "--target-dir", target],
        cwd=REPOSITORY,
        check=True,
    )
    shutil.copy(target / "debug" / "libnvidia_ml.so", tmp_path / "libnvidia-ml.so.1")
    shutil.copy(REPOSITORY / "tests/fake-nvml/profiles/dgx-a100.json", tmp_path / "fake-nvml.json")
    return tmp_path


def test_nvidia_s_package_sees_the_machine_and_its_changes(library: Path) -> None:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library)}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None

        def look() -> Any:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        machine = look()
        assert (machine["driver"], machine["cuda"]) == ("550.163.01", 12040)
        assert machine["ancestor"] == 20
        assert [gpu["minor"] for gpu in machine["gpus"]] == [2, 3, 0, 1, 6, 7, 4, 5]
        gpu = machine["gpus"][7]
        assert (gpu["name"], gpu["bus"]) == ("NVIDIA A100-SXM4-40GB", "00000000:BD:00.0")
        assert (gpu["capability"], gpu["links"], gpu["remote"]) == ([8, 0], 12, "00000000:01:00.0")
        assert (gpu["clique"], gpu["nodes"], gpu["rows"]) == (None, 1 << 5, [0, 0, 0, 0])
        assert gpu["processes"] == []

        state = json.loads((library / "fake-nvml.json").read_text())
        state["gpus"][7]["compute_processes"] = [{"pid": 4242, "memory": 1 << 30}]
        state["gpus"][7]["memory"] = {"total": 40 << 30, "used": 1 << 30}
        (library / "new").write_text(json.dumps(state))
        (library / "new").rename(library / "fake-nvml.json")
        gpu = look()["gpus"][7]
        assert (gpu["processes"], gpu["free"]) == ([4242], 39 << 30)
        process.stdin.close()
        assert process.wait() == 0
