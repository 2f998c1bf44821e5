"""What ``subprocess.Popen`` has, by the same names and with the same results."""

from __future__ import annotations

import gc
import inspect
import multiprocessing
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest
from starting import BUSYBOX, NEEDED, Start

import gpucontainer
from gpucontainer import DEVNULL, PIPE, Process, errors

pytestmark = NEEDED


@pytest.fixture(params=["sandbox", "exec"])
def popen(request: pytest.FixtureRequest, start: Start) -> Callable[..., Any]:
    """Starts a shell, as a sandbox or as a further process of one."""
    if request.param == "sandbox":
        return start
    around = start("exec sleep 1000")

    def further(script: str, **options: Any) -> Process[Any]:
        return around.exec(["sh", "-c", script], **{"stdin": DEVNULL, "stdout": PIPE, "stderr": PIPE, **options})

    return further


def test_the_names_are_those_of_popen(popen: Callable[..., Any]) -> None:
    with popen("exit 0") as one:
        ours = {name for name in dir(one) if not name.startswith("_")}
        with subprocess.Popen(["true"]) as theirs:
            names = {name for name in dir(theirs) if not name.startswith("_")}
        # These say how `Popen` was called, and not all of them are documented.
        assert names - ours <= {"encoding", "errors", "pipesize", "process_group", "text_mode", "universal_newlines"}
        for name in ("wait", "communicate", "poll", "terminate", "send_signal"):
            asked = inspect.signature(getattr(one, name)).parameters
            expected = inspect.signature(getattr(subprocess.Popen, name)).parameters
            assert list(asked) == [parameter for parameter in expected if parameter != "self"]
        assert one.args == ["sh", "-c", "exit 0"]


def test_waiting(popen: Callable[..., Any]) -> None:
    with popen("exec sleep 1000", stdout=DEVNULL, stderr=DEVNULL) as one:
        assert one.poll() is None and one.returncode is None
        for timeout in (0, 0.05):
            with pytest.raises(subprocess.TimeoutExpired) as caught:
                one.wait(timeout=timeout)
            assert caught.value.timeout == timeout and caught.value.cmd == one.args
        assert select.select([one], [], [], 0)[0] == []
        one.send_signal(signal.SIGTERM)
        assert one.wait(timeout=60) == -signal.SIGTERM == one.returncode == one.poll()
        assert select.select([one.fileno()], [], [], 60)[0]
        one.kill()
        one.terminate()


def test_input_and_output_of_text(popen: Callable[..., Any]) -> None:
    with popen("cat; printf 'b\\r\\nc\\r' >&2", stdin=PIPE, text=True) as one:
        assert one.communicate("h\xe4h\n") == gpucontainer.Output("h\xe4h\n", "b\nc\n", one.wait())
        # Once more it is the same.
        assert one.communicate().stdout == "h\xe4h\n"
    with popen("cat", stdin=PIPE, encoding="utf-16-le") as one:
        stdout, _ = one.communicate("\u20ac")
        assert stdout == "\u20ac"
    with popen("printf '\\377'", encoding="utf-8", errors="backslashreplace") as one:
        assert one.communicate().stdout == "\\xff"
    with popen("cat", stdin=PIPE, text=True, stderr=DEVNULL) as one:
        one.stdin.write("begun, ")
        assert one.communicate("and ended").stdout == "begun, and ended"
    with popen("cat", stdin=PIPE, text=True) as one:
        with pytest.raises(TypeError, match="input"):
            one.communicate(b"bytes")


def test_a_timeout_loses_nothing(popen: Callable[..., Any]) -> None:
    data = os.urandom(1 << 20)
    script = "echo a; echo e >&2; sleep 3; echo b; exec cat"
    with popen(script, stdin=PIPE) as one:
        with pytest.raises(errors.TimeoutExpiredError) as caught:
            one.communicate(data, timeout=0.5)
        assert b"a\n".startswith(caught.value.stdout) and b"e\n".startswith(caught.value.stderr)
        with pytest.raises(subprocess.TimeoutExpired):
            one.communicate(timeout=0)
        with pytest.raises(ValueError, match="input"):
            one.communicate(b"other input", timeout=0)
        stdout, stderr = one.communicate(timeout=100)
        assert (stdout, stderr, one.returncode) == (b"a\nb\n" + data, b"e\n", 0)


def test_much_data_comes_through(popen: Callable[..., Any]) -> None:
    with popen("exec dd if=/dev/zero bs=1048576 count=64 2>/dev/null") as one:
        assert len(one.communicate().stdout) == 64 << 20


def interrupted(call: Callable[[], object]) -> None:
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        call()
    timer.join()


def test_ctrl_c_ends_each_call_that_waits(popen: Callable[..., Any], start: Start) -> None:
    with popen("exec sleep 1000", stdin=PIPE) as one:
        interrupted(one.wait)
        interrupted(lambda: one.wait(timeout=1000))
        interrupted(one.communicate)
        interrupted(lambda: one.communicate(timeout=1000))
        assert one.poll() is None
    sandbox = start("exec sleep 1000")
    interrupted(lambda: sandbox.wait_ready(80))
    assert sandbox.poll() is None


def test_two_threads_call_at_once(popen: Callable[..., Any]) -> None:
    with popen("exec sleep 1000", stdout=DEVNULL, stderr=DEVNULL) as one:
        statuses: list[int] = []
        threads = [threading.Thread(target=lambda: statuses.append(one.wait())) for _ in range(4)]
        threads += [threading.Thread(target=lambda: statuses.append(one.communicate().status)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(100):
            one.poll()
        one.kill()
        for thread in threads:
            thread.join(60)
        assert statuses == [-signal.SIGKILL] * 6


def test_use_after_a_close(popen: Callable[..., Any], start: Start) -> None:
    one = popen("exec sleep 1000", stdin=PIPE)
    one.close()
    one.close()
    for use in (one.wait, one.poll, one.kill, one.terminate, one.fileno):
        with pytest.raises(errors.ClosedError):
            use()
    with one:
        pass
    assert one.stdin.closed and one.stdout.closed and one.stderr.closed
    sandbox = start("exec sleep 1000")
    sandbox.close()
    uses: list[Callable[[], object]] = [
        lambda: sandbox.exec(["true"]),
        lambda: sandbox.wait_ready(80),
        lambda: sandbox.dial(80),
        lambda: sandbox.publish(80),
        sandbox.stats,
        sandbox.pause,
    ]
    for use in uses:
        with pytest.raises(errors.ClosedError):
            use()
    assert sandbox.name in repr(sandbox)


def test_a_close_ends_the_waits_of_other_threads(start: Start) -> None:
    sandbox = start("exec sleep 1000")
    ended: list[object] = []

    def wait() -> None:
        try:
            ended.append(sandbox.wait())
        except errors.ClosedError as error:
            ended.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.2)
    sandbox.close()
    thread.join(60)
    assert not thread.is_alive() and len(ended) == 1


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("ending", ["drop", "exit"])
def test_a_forked_child_that_drops_a_sandbox_does_nothing_to_it(start: Start, ending: str) -> None:
    sandbox = start("exec nc -ll -p 80 -e cat", ports={80: 0})
    holder = [sandbox]
    sandbox.wait_ready(80, timeout=60)
    child = os.fork()
    if child == 0:
        try:
            if ending == "drop":
                holder.clear()
                sandbox = None  # type: ignore[assignment]
                gc.collect()
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert sandbox.poll() is None
    assert Path(f"/proc/{sandbox.pid}").exists()
    sandbox.wait_ready(80, timeout=60)
    with sandbox.exec(["echo", "still"], stdin=DEVNULL, stdout=PIPE) as process:
        assert process.communicate().stdout == b"still\n"
    assert sandbox.stats()


@pytest.fixture(scope="module", autouse=True)
def tracker() -> None:
    # A process of Python's own, with a pipe to it, which stays.
    resource_tracker.ensure_running()


def _runs(store: Path) -> bytes:
    image = gpucontainer.ImageStore(store).image("test:1")
    result = gpucontainer.run(image, stdin=DEVNULL, capture_output=True, timeout=60)
    assert isinstance(result.stdout, bytes)
    return result.stdout


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_pools_of_processes_while_a_sandbox_runs(start: Start, tmp_path: Path, method: str) -> None:
    sandbox = start("exec sleep 1000")
    assert BUSYBOX is not None
    builder = gpucontainer.ImageStore(tmp_path).build().copy(BUSYBOX, "/bin/busybox", follow_links=True)
    builder.command(["/bin/busybox", "echo", "from the image"]).commit("test:1")
    context: Any = multiprocessing.get_context(method)
    with context.Pool(2) as pool:
        assert pool.map(_runs, [tmp_path] * 4) == [b"from the image\n"] * 4
        pool.close()
        pool.join()
    assert sandbox.poll() is None
