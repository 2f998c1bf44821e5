"""Workers of Ray in sandboxes, with the GPUs that Ray assigns."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import left_behind
import pytest

import gpucontainer

if importlib.util.find_spec("ray") is None:
    pytest.skip("ray is not installed", allow_module_level=True)

pytest_plugins = ["stand_in_fixtures"]

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="not root"),
    pytest.mark.skipif(not os.access("/proc/sys/kernel/ns_last_pid", os.W_OK), reason="process ids cannot be chosen"),
]

PROGRAM = Path(__file__).with_name("ray_user.py")
SCENARIOS = re.findall(r"^    (\w+),$", PROGRAM.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def results(python_store: gpucontainer.ImageStore, fake_machine: Path) -> Iterator[dict[str, str]]:
    """What each scenario came to; they share a cluster, whose start is the longest of it all."""
    # Sockets of Ray have names of a hundred letters at most.
    directory = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    environ = {**os.environ, "GPUCONTAINER_DRIVER_ROOT": str(fake_machine)}
    try:
        with left_behind.nothing(python_store, killed=True):
            environ |= {name: os.environ[name] for name in os.environ if name.startswith("GPUC_")}
            words = [sys.executable, str(PROGRAM), str(python_store.path), str(directory)]
            done = subprocess.run(words, capture_output=True, text=True, env=environ, timeout=500)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
        assert len(lines) == len(SCENARIOS), done.stdout + done.stderr
        yield {name: wrong for name, wrong, _ in lines}
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_ray(results: dict[str, str], scenario: str) -> None:
    assert not results[scenario], results[scenario]
