"""The examples of the READMEs run as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["README.md", "gpucontainer-py/README.md"])
def test_the_example_runs(name: str, tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / name).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        # A process of its own: examples print, and a test may have left something in this one.
        process = subprocess.run(
            [sys.executable, "-W", "error", "-c", block], cwd=tmp_path, capture_output=True, text=True
        )
        assert process.returncode == 0, process.stderr
        assert process.stdout


@pytest.mark.parametrize("example", sorted((ROOT / "examples/python").glob("*.py")), ids=lambda path: path.name)
def test_the_examples_run(example: Path, tmp_path: Path) -> None:
    said = run(example, tmp_path)
    assert said.strip()
    if example.name == "hello.py":
        assert "hello from process" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_four_instances_get_two_gpus_each(tmp_path: Path) -> None:
    if shutil.which("cargo") is None:
        pytest.skip("cargo is not installed")
    machine = tmp_path / "machine"
    subprocess.run([ROOT / "tests/fake-host", "dgx-a100", machine], check=True)
    said = run(ROOT / "examples/python/gpu_share.py", tmp_path, GPUCONTAINER_DRIVER_ROOT=str(machine))
    gpus = re.findall(r"GPU-[0-9a-f-]+", said)
    assert len(gpus) == len(set(gpus)) == 8
    seen = re.findall(r"^  sees (nvidia\d+) (nvidia\d+)$", said, re.MULTILINE)
    assert len({node for pair in seen for node in pair}) == 8
    reasons = [line for line in said.splitlines() if line.startswith("instance ")]
    assert len(reasons) == 4 and all("NVLink" in reason for reason in reasons)


def run(example: Path, directory: Path, **environment: str) -> str:
    command = [sys.executable, "-W", "error", str(example), str(directory / "store")]
    process = subprocess.run(command, cwd=directory, capture_output=True, text=True, env={**os.environ, **environment})
    assert process.returncode == 0, process.stderr
    return process.stdout
