"""A process that becomes a sandbox, and descriptors that are passed into one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import gpucontainer
from gpucontainer import DEVNULL, Sandbox

BUSYBOX = shutil.which("busybox")
IS_ROOT = os.geteuid() == 0

pytestmark = [
    pytest.mark.skipif(BUSYBOX is None, reason="busybox is not installed"),
    pytest.mark.skipif(
        not IS_ROOT and not gpucontainer.Host.probe().has("user-namespaces"), reason="no user namespaces"
    ),
]

BECOME = """
import atexit, sys, threading
from pathlib import Path
import gpucontainer
atexit.register(print, "never")
print("before")
root, how, *command = sys.argv[1:]
if how == "threads":
    threading.Thread(target=threading.Event().wait, daemon=True).start()
options = {"stdout": gpucontainer.PIPE} if how == "pipe" else {}
gpucontainer.enter(Path(root), command, **options)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    assert BUSYBOX is not None
    (tmp_path / "bin").mkdir()
    shutil.copy(BUSYBOX, tmp_path / "bin/busybox")
    for name in ("sh", "cat", "sleep"):
        (tmp_path / "bin" / name).symlink_to("busybox")
    return tmp_path


def become(root: Path, how: str, script: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", BECOME, str(root), how, "sh", "-c", script]
    return subprocess.Popen(
        arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_the_exit_code_is_the_callers(root: Path, code: int) -> None:
    process = become(root, "", f"echo inside; exit {code}")
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (code, "before\ninside\n", "")


def test_signals_and_a_death_by_one(root: Path) -> None:
    process = become(root, "", "trap 'echo usr1; kill -ABRT $$' USR1; echo ready; while :; do sleep 0.01; done")
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["before\n", "ready\n"]
    process.send_signal(signal.SIGUSR1)
    assert process.communicate(timeout=60)[0] == "usr1\n"
    assert process.returncode == -signal.SIGABRT


@pytest.mark.parametrize(
    ("how", "words"),
    [("threads", "UnsupportedError: turn the calling process into a sandbox: it has 2 threads"), ("pipe", "is piped")],
)
def test_a_start_that_fails_raises(root: Path, how: str, words: str) -> None:
    process = become(root, how, "exit 0")
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (1, "before\nnever\n")
    assert words in errors


def test_descriptors_are_passed(root: Path) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as lines:
        with Sandbox(root, ["sh", "-c", "echo one >&9; sleep 1000"], stdin=DEVNULL, pass_fds={9: writer}) as sandbox:
            assert sandbox.exec(["sh", "-c", f"echo two >&{writer}"], pass_fds=[writer]).wait().success
            with pytest.raises(gpucontainer.errors.InvalidArgumentError, match="passed descriptor 2 is not within 3"):
                sandbox.exec(["sh"], pass_fds={2: writer})
        os.close(writer)
        assert sorted(lines.read().split()) == [b"one", b"two"]
