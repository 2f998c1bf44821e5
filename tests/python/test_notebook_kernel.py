"""A Jupyter kernel whose program is a stand-in: it computes, is interrupted, restarted and shut down."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("jupyter_client")
pytest.importorskip("ipykernel")


pytest_plugins = ["stand_in_fixtures"]

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("clean_after_kill")]

Drive = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def drive(write: Callable[..., str], tmp_path: Path) -> Drive:
    specification = tmp_path / "kernels/image/kernel.json"
    specification.parent.mkdir(parents=True)
    argv = [write(), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    specification.write_text(json.dumps({"argv": argv, "display_name": "image", "language": "python"}))
    words = [sys.executable, str(Path(__file__).with_name("kernel_user.py")), str(tmp_path)]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*words, *more], capture_output=True, text=True, timeout=240)

    return run


def test_a_kernel_computes_is_interrupted_restarted_and_shut_down(drive: Drive) -> None:
    done = drive()
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["done"]), done.stderr


def test_a_kernel_ends_with_a_client_that_crashes(drive: Drive) -> None:
    # What is left of it is looked for at the end.
    assert drive("left").returncode == -signal.SIGKILL
