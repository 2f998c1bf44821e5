"""What several tests share: an image with the Python of the tests, and a stand-in for that."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import host_python
import left_behind
import pytest

import gpucontainer
from gpucontainer import stand_in

WriteStandIn = Callable[..., str]


@pytest.fixture(scope="session")
def python_store(tmp_path_factory: pytest.TempPathFactory) -> gpucontainer.ImageStore:
    """A store with the image ``python:test``."""
    if os.geteuid() != 0 and not gpucontainer.Host.probe().has("user-namespaces"):
        pytest.skip("no user namespaces")
    store = gpucontainer.ImageStore(tmp_path_factory.mktemp("python-store"))
    host_python.build(store)
    return store


@pytest.fixture
def options(python_store: gpucontainer.ImageStore) -> list[str]:
    """The options with which the image's Python runs."""
    return ["--store", str(python_store.path), *host_python.options()]


@pytest.fixture
def write(tmp_path: Path, options: list[str]) -> WriteStandIn:
    """Writes a stand-in for the Python of the tests, with further options."""

    def write_one(*more: str) -> str:
        return str(stand_in.write(tmp_path / "python", "python:test", [host_python.PYTHON], *options, *more))

    return write_one


@pytest.fixture
def clean(python_store: gpucontainer.ImageStore, request: pytest.FixtureRequest) -> Iterator[None]:
    """Nothing is left behind."""
    if "clean_after_kill" in request.fixturenames:
        yield
        return
    with left_behind.nothing(python_store):
        yield


@pytest.fixture
def clean_after_kill(python_store: gpucontainer.ImageStore) -> Iterator[None]:
    """Nothing is left behind that the next sandbox does not remove."""
    with left_behind.nothing(python_store, killed=True):
        yield


@pytest.fixture(scope="session")
def fake_machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver root of a machine with eight GPUs, ``dgx-a100`` of the profiles."""
    if shutil.which("cargo") is None:
        pytest.skip("cargo is not installed")
    machine = tmp_path_factory.mktemp("machine") / "root"
    subprocess.run([host_python.ROOT / "tests/fake-host", "dgx-a100", machine], check=True)
    # Leases are the host's: identifiers of their own keep them apart from those of other tests at the same time.
    (profile,) = machine.rglob("fake-nvml.json")
    facts = json.loads(profile.read_text())
    for gpu in facts["gpus"]:
        gpu["uuid"] = f"GPU-{uuid.uuid4()}"
    profile.write_text(json.dumps(facts))
    return machine
