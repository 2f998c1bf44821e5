"""A program run to its end, as ``subprocess.run`` does it."""

from __future__ import annotations

import inspect
import os
import pickle
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from starting import IS_ROOT, NEEDED

import gpucontainer
from gpucontainer import DEVNULL, PIPE, STDOUT, Completed, ExecOptions, Image, Sandbox, SandboxOptions, errors, run

pytestmark = NEEDED


def sh(image: Image, script: str, **options: Any) -> Completed[Any]:
    return run(image, ["sh", "-c", script], **{"stdin": DEVNULL, **options})


@pytest.fixture(autouse=True)
def nothing_left_open() -> Any:
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_bytes_text_and_both_streams(image: Image) -> None:
    result = run(image, ["sh", "-c", "echo out; echo err >&2; exit 3"], stdin=DEVNULL, capture_output=True)
    assert (result.args, result.stdout, result.stderr) == (
        ["sh", "-c", "echo out; echo err >&2; exit 3"],
        b"out\n",
        b"err\n",
    )
    assert result.returncode == 3 and result.returncode.code == 3 and not result.oom_killed
    assert isinstance(result, subprocess.CompletedProcess)
    text = run(image, ["sh", "-c", "printf 'a\\r\\nb\\rc'"], stdin=DEVNULL, stdout=PIPE, text=True)
    # The line ends of Python, as subprocess has them.
    assert text.stdout == "a\nb\nc"
    assert text.stderr == ""
    assert sh(image, "exec id -u >/dev/null").stdout == b""


def test_input_and_encodings(image: Image) -> None:
    assert run(image, ["cat"], input=b"\xff\x00", stdout=PIPE).stdout == b"\xff\x00"
    assert run(image, ["cat"], input=bytearray(b"x"), stdout=PIPE).stdout == b"x"
    assert run(image, ["cat"], input="h\xe4h", stdout=PIPE, encoding="latin-1").stdout == "h\xe4h"
    assert run(image, ["cat"], input="", stdout=PIPE, text=True).stdout == ""
    assert sh(image, "printf '\\377'", stdout=PIPE, encoding="utf-8", errors="replace").stdout == "\ufffd"
    with pytest.raises(UnicodeDecodeError):
        sh(image, "printf '\\377'", stdout=PIPE, encoding="utf-8")
    data = os.urandom(1 << 20)
    assert run(image, ["cat"], input=data, stdout=PIPE).stdout == data
    # A program that reads nothing of much input is no error.
    assert run(image, ["sh", "-c", "exit 4"], input=data).returncode == 4


def test_errors_go_where_output_goes(image: Image, tmp_path: Path) -> None:
    script = "echo a; echo b >&2; echo c"
    assert sh(image, script, stdout=PIPE, stderr=STDOUT).stdout == b"a\nb\nc\n"
    with (tmp_path / "log").open("wb") as file:
        sh(image, script, stdout=file, stderr=STDOUT)
    assert (tmp_path / "log").read_bytes() == b"a\nb\nc\n"
    assert sh(image, script, stdout=DEVNULL, stderr=STDOUT).stdout == b""


def test_a_failure_carries_its_result(image: Image) -> None:
    assert sh(image, "true", check=True).returncode == 0
    with pytest.raises(errors.CalledProcessError, match=r"exit code 9.*went wrong") as caught:
        sh(image, "echo out; echo went wrong >&2; exit 9", check=True, capture_output=True, text=True)
    error = caught.value
    assert isinstance(error, subprocess.CalledProcessError) and isinstance(error, gpucontainer.Error)
    assert (error.returncode, error.stdout, error.output, error.stderr) == (9, "out\n", "out\n", "went wrong\n")
    assert error.cmd[0] == "sh" and error.result.returncode == 9
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.result.stdout) == (type(error), str(error), "out\n")
    with pytest.raises(subprocess.CalledProcessError, match="signal 15"):
        sh(image, "kill -TERM $$", check=True)
    assert sh(image, "kill -TERM $$").returncode == -signal.SIGTERM
    with pytest.raises(errors.CalledProcessError):
        sh(image, "exit 1").check_returncode()


def test_a_timeout_kills_and_keeps_what_was_written(image: Image) -> None:
    started = time.monotonic()
    with pytest.raises(errors.TimeoutExpiredError, match=r"0\.5 seconds") as caught:
        sh(image, "echo out; echo err >&2; sleep 1000 & sleep 1000", timeout=0.5, capture_output=True, text=True)
    assert time.monotonic() - started < 30
    error = caught.value
    assert isinstance(error, TimeoutError) and isinstance(error, subprocess.TimeoutExpired)
    assert isinstance(error, errors.TimedOutError)
    assert (error.stdout, error.output, error.stderr, error.timeout) == ("out\n", "out\n", "err\n", 0.5)
    assert error.cmd[0] == "sh"
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.stdout, copy.stderr, str(copy)) == ("out\n", "err\n", str(error))
    # Half a letter is no reason to lose the rest.
    with pytest.raises(errors.TimeoutExpiredError) as caught:
        sh(image, "printf 'x\\303'; sleep 1000", timeout=0.5, stdout=PIPE, encoding="utf-8")
    assert caught.value.stdout == "x"


@pytest.mark.skipif(not IS_ROOT, reason="not root")
def test_what_was_used_is_told(image: Image) -> None:
    script = "x=1234567890123456; while [ ${#x} -lt 4000000 ]; do x=$x$x; done"
    usage = sh(image, script, cpus=8, memory=256 << 20).usage
    assert usage is not None
    assert usage.memory_peak is not None and usage.memory_peak > 4_000_000
    assert sh(image, "true", cgroup=False).usage is None
    hog = sh(image, "x=1234567890123456; while :; do x=$x$x; done", memory=16 << 20, stderr=DEVNULL)
    assert hog.oom_killed and hog.returncode != 0 and "oom_killed" in repr(hog)


def test_ctrl_c_ends_everything(image: Image) -> None:
    before = set(children())
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        sh(image, "sleep 1000", stdout=PIPE)
    timer.join()
    assert set(children()) == before


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_what_cannot_be_is_refused_before_anything_starts(image: Image) -> None:
    wrong_types: list[tuple[dict[str, Any], str]] = [
        ({"gpu": 1}, "'gpu' is no option.*'gpus'"),
        ({"bogus": 1}, "'bogus' is no option"),
        ({"input": 3}, "input"),
        ({"input": "text"}, "input"),
        ({"input": b"bytes", "text": True}, "input"),
        ({"encoding": 3}, "encoding"),
        ({"stdout": "file"}, "stdout"),
        ({"stdin": True}, "stdin"),
    ]
    for options, words in wrong_types:
        options = {"stdin": None, **options}
        with pytest.raises(TypeError, match=words):
            sh(image, "true", **options)
    wrong_values: list[tuple[dict[str, Any], str]] = [
        ({"stdin": PIPE, "input": b""}, "stdin and input"),
        ({"stdout": PIPE, "capture_output": True}, "capture_output"),
        ({"stderr": STDOUT, "capture_output": True}, "capture_output"),
        ({"stdout": -7}, "stdout"),
        ({"stdin": STDOUT}, "stdin"),
    ]
    for options, words in wrong_values:
        with pytest.raises(ValueError, match=words):
            sh(image, "true", **options)


def test_the_options_are_those_of_a_sandbox() -> None:
    own = {"self", "image", "command", "text", "encoding", "errors"}
    assert set(inspect.signature(Sandbox.__init__).parameters) - own == set(SandboxOptions.__annotations__)
    assert set(inspect.signature(Sandbox.exec).parameters) - own == set(ExecOptions.__annotations__)


def test_much_output_is_shown_in_short(image: Image) -> None:
    result = run(image, ["dd", "if=/dev/zero", "bs=1048576", "count=8"], stdin=DEVNULL, capture_output=True)
    assert len(result.stdout) == 8 << 20
    assert len(repr(result)) < 10_000 and f"({8 << 20} in all)" in repr(result)
