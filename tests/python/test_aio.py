"""Sandboxes in an event loop."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import pytest
from starting import NEEDED

import gpucontainer
from gpucontainer import DEVNULL, PIPE, STDOUT, Image, aio, errors

pytestmark = NEEDED

Result = TypeVar("Result")


def tasks() -> set[str]:
    return set(os.listdir("/proc/self/task"))


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    gc.collect()
    before = sorted(os.listdir("/proc/self/fd"))
    threads, native = threading.active_count(), tasks()
    yield
    gc.collect()
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert threading.active_count() == threads
    deadline = time.monotonic() + 30
    # A thread that was joined may be seen a moment longer.
    while tasks() != native and time.monotonic() < deadline:
        time.sleep(0.01)
    assert tasks() == native


def do(work: Coroutine[Any, Any, Result]) -> Result:
    async def within() -> Result:
        return await asyncio.wait_for(work, 100)

    return asyncio.run(within())


def shell(image: Image, script: str, **options: Any) -> aio.Sandbox[Any]:
    return aio.Sandbox(image, ["sh", "-c", script], **{"stdin": DEVNULL, "stdout": PIPE, "stderr": PIPE, **options})


def test_it_is_not_loaded_with_the_package() -> None:
    script = "import sys, gpucontainer; gpucontainer.run; print('asyncio' in sys.modules); gpucontainer.aio.run"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout == "False\n"


def test_a_program_is_run_to_its_end(image: Image) -> None:
    async def main() -> None:
        result = await aio.run(image, ["sh", "-c", "cat; echo b >&2; exit 3"], input=b"a", capture_output=True)
        assert (result.stdout, result.stderr, result.returncode) == (b"a", b"b\n", 3)
        assert isinstance(result, gpucontainer.Completed)
        text = await aio.run(image, ["cat"], input="h\xe4h\r\n", stdout=PIPE, encoding="latin-1")
        assert text.stdout == "h\xe4h\n"
        with pytest.raises(errors.CalledProcessError, match="exit code 9"):
            await aio.run(image, ["sh", "-c", "exit 9"], stdin=DEVNULL, check=True)
        with pytest.raises(errors.TimeoutExpiredError) as caught:
            script = "echo out; sleep 1000 & sleep 1000"
            await aio.run(image, ["sh", "-c", script], stdin=DEVNULL, timeout=0.5, capture_output=True, text=True)
        assert (caught.value.stdout, caught.value.stderr) == ("out\n", "")
        with pytest.raises(TypeError, match="'gpus'"):
            await aio.run(image, ["true"], gpu=1)  # type: ignore[call-overload]
        with pytest.raises(ValueError, match="stdin and input"):
            await aio.run(image, ["true"], input=b"", stdin=PIPE)

    do(main())


def test_lines_of_a_stream(image: Image) -> None:
    async def main() -> None:
        async with shell(image, "echo a; printf 'b\\r\\nc'; echo d >&2") as sandbox:
            assert sandbox.stdout is not None and sandbox.stderr is not None
            assert [line async for line in sandbox.stdout] == [b"a\n", b"b\r\n", b"c"]
            assert await sandbox.stdout.readline() == b"" and await sandbox.stdout.read() == b""
            assert (await sandbox.stderr.read(1), await sandbox.stderr.read()) == (b"d", b"\n")
            assert await sandbox.wait() == 0
        async with shell(image, "echo a; printf 'b\\r'; echo; printf '\\303'; printf '\\244'", text=True) as sandbox:
            assert sandbox.stdout is not None
            assert [line async for line in sandbox.stdout] == ["a\n", "b\n", "\xe4"]
        # A line far longer than what a pipe holds.
        async with shell(image, "dd if=/dev/zero bs=1048576 count=3 2>/dev/null; echo; echo x") as sandbox:
            assert sandbox.stdout is not None
            assert [len(line) async for line in sandbox.stdout] == [3 * 1048576 + 1, 2]
        async with shell(image, "echo a; echo b >&2", stderr=STDOUT) as sandbox:
            assert await sandbox.communicate() == gpucontainer.Output(b"a\nb\n", b"", await sandbox.wait())

    do(main())


def test_a_conversation(image: Image) -> None:
    async def main() -> None:
        async with shell(image, "exec cat", stdin=PIPE, text=True) as sandbox:
            assert sandbox.stdin is not None and sandbox.stdout is not None
            for word in ("one\n", "two\n"):
                sandbox.stdin.write(word)
                await sandbox.stdin.drain()
                assert await sandbox.stdout.readline() == word
            sandbox.stdin.write("three")
            stdout, _ = await sandbox.communicate()
            assert stdout == "three"
            with pytest.raises(BrokenPipeError):
                sandbox.stdin.write("four")
        data = os.urandom(4 << 20)
        async with shell(image, "exec cat", stdin=PIPE) as sandbox:
            assert (await sandbox.communicate(data)).stdout == data
        # Nobody reads it.
        async with shell(image, "exit 4", stdin=PIPE) as sandbox:
            assert (await sandbox.communicate(data)).status == 4

    do(main())


def test_a_timeout_loses_nothing(image: Image) -> None:
    async def main() -> None:
        async with shell(image, "printf 'a\\303'; read x; printf '\\244'; exit 3", stdin=PIPE, text=True) as sandbox:
            assert sandbox.stdin is not None
            with pytest.raises(errors.TimeoutExpiredError) as caught:
                await sandbox.wait(timeout=0.5)
            assert caught.value.timeout == 0.5
            assert (await sandbox.communicate("x" * 100)).stdout == "a\xe4"
        async with shell(image, "printf 'a\\303'; sleep 3; printf '\\244'; exit 3", text=True) as sandbox:
            with pytest.raises(errors.TimeoutExpiredError) as caught:
                await sandbox.communicate(timeout=0.3)
            assert caught.value.stdout in ("a", "") and sandbox.returncode is None
            output = await sandbox.communicate(timeout=60)
            assert (output.stdout, output.status) == ("a\xe4", 3)
            assert (await sandbox.communicate()).stdout == "a\xe4"

    do(main())


def test_signals_and_waits_at_once(image: Image) -> None:
    async def main() -> None:
        sandbox = await shell(image, "exec sleep 1000")
        assert sandbox.poll() is None and sandbox.pid > 0 and sandbox.fileno() >= 0
        assert sandbox.args == ["sh", "-c", "exec sleep 1000"]
        waits = [asyncio.create_task(sandbox.wait()) for _ in range(3)]
        await asyncio.sleep(0)
        waits[0].cancel()
        sandbox.terminate()
        assert [status.signal for status in await asyncio.gather(*waits[1:])] == [signal.SIGTERM] * 2
        assert waits[0].cancelled() and sandbox.returncode == -signal.SIGTERM
        await sandbox.close()
        await sandbox.close()
        with pytest.raises(errors.ClosedError):
            sandbox.fileno()

    do(main())


def test_no_threads_are_used_and_the_loop_goes_on(image: Image) -> None:
    async def main() -> None:
        threads, native = threading.active_count(), tasks()
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.005)
                ticks += 1
                assert threading.active_count() == threads

        async with (
            shell(image, "sleep 0.5; echo a; exec nc -ll -p 80 -e cat", stdin=PIPE) as one,
            shell(image, "sleep 1", stdin=PIPE) as other,
        ):
            ticker = asyncio.create_task(tick())
            await asyncio.sleep(0.1)
            assert tasks() == native
            waits = asyncio.gather(other.wait(), other.communicate(), one.wait_ready(80, timeout=60))
            await asyncio.sleep(0.1)
            assert tasks() == native
            await waits
            assert one.stdout is not None and await one.stdout.readline() == b"a\n"
            assert tasks() == native
            ticker.cancel()
        assert ticks >= 20

    do(main())


def test_readiness(image: Image) -> None:
    async def main() -> None:
        async with shell(image, "sleep 0.3; exit 3") as sandbox:
            with pytest.raises(errors.ClosedError, match=r"port 8080.*exit code 3"):
                await sandbox.wait_ready(8080)
        async with shell(image, "exec sleep 1000") as sandbox:
            with pytest.raises(errors.TimedOutError, match="8080"):
                await sandbox.wait_ready(8080, timeout=0.2)
            with pytest.raises(ValueError, match="timeout"):
                await sandbox.wait_ready(8080, timeout=-1)
            waiting = asyncio.create_task(sandbox.wait_ready(8080))
            await asyncio.sleep(0.1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert sandbox.poll() is None

    do(main())


def test_further_processes(image: Image) -> None:
    async def main() -> None:
        async with shell(image, "exec sleep 1000") as sandbox:
            process = await sandbox.exec(["sh", "-c", "cat; exit 9"], stdin=PIPE, stdout=PIPE, text=True)
            async with process:
                output = await process.communicate("in", timeout=60)
            assert (output.stdout, output.status) == ("in", 9)
            async with await sandbox.exec(["sleep", "1000"], stdin=DEVNULL) as sleeper:
                pid = sleeper.pid
            assert not os.path.exists(f"/proc/{pid}")
            assert sandbox.poll() is None
            assert sandbox.sandbox.name == sandbox.name

    do(main())


def test_cancelling_a_run_kills_everything(image: Image) -> None:
    async def main() -> None:
        children = set(children_of())
        running = asyncio.create_task(aio.run(image, ["sleep", "1000"], stdin=DEVNULL, capture_output=True))
        while set(children_of()) == children:
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert set(children_of()) == children

    do(main())


def children_of() -> list[str]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return file.read().split()


def test_use_before_a_start_and_twice(image: Image) -> None:
    async def main() -> None:
        sandbox = shell(image, "exit 0")
        for use in (sandbox.poll, sandbox.fileno, sandbox.kill):
            with pytest.raises(errors.ClosedError, match="not started"):
                use()
        await sandbox.close()
        with pytest.raises(TypeError, match="'bogus'"):
            aio.Sandbox(image, ["true"], bogus=1)  # type: ignore[call-overload]
        async with sandbox:
            with pytest.raises(errors.ClosedError, match="already"):
                await sandbox
        with pytest.raises(errors.CommandNotFoundError, match="no-such"):
            await aio.run(image, ["no-such"], stdin=PIPE, capture_output=True)

    do(main())


def test_a_pull_and_a_push_have_a_thread_and_are_cancelled(image: Image, tmp_path: Any) -> None:
    async def main() -> None:
        store = gpucontainer.ImageStore(tmp_path)
        accepted = asyncio.Event()

        async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted.set()
            try:
                await asyncio.sleep(1000)
            finally:
                writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        pulling = asyncio.create_task(aio.pull(store, f"127.0.0.1:{port}/a:1", plain_http=True))
        await accepted.wait()
        pulling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pulling
        server.close()
        with pytest.raises(gpucontainer.Error):
            await aio.pull(store, "127.0.0.1:1/a:1", plain_http=True)
        with pytest.raises(TypeError, match="bogus"):
            await aio.pull(store, "127.0.0.1:1/a:1", bogus=1)
        built = store.build().file("/a", b"a").commit("a:1")
        accepted.clear()
        server = await asyncio.start_server(silent, "127.0.0.1", port)
        pushing = asyncio.create_task(aio.push(store, built, f"127.0.0.1:{port}/a:1", plain_http=True))
        await accepted.wait()
        pushing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pushing
        server.close()
        with pytest.raises(gpucontainer.Error):
            await aio.push(store, built, "127.0.0.1:1/a:1", plain_http=True)

    do(main())
