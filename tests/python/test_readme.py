"""The examples of the READMEs run as they stand there."""

from __future__ import annotations

import re
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
    command = [sys.executable, "-W", "error", str(example), str(tmp_path / "store")]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "hello from process" in process.stdout
