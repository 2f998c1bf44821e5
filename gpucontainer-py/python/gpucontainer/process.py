"""Processes that run: their ends, their streams, waiting for them."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import os
import selectors
import signal as signals
import subprocess
import time
from typing import IO, Any, Protocol, TypeAlias

from . import _native
from .closing import Closing
from .errors import TimedOutError

#: For ``stdin``, ``stdout`` and ``stderr``: a pipe, or the null device. The same as those of ``subprocess``.
PIPE = subprocess.PIPE
DEVNULL = subprocess.DEVNULL

_Stream: TypeAlias = int | IO[Any] | None


@dataclasses.dataclass(frozen=True)
class ExitStatus:
    """How a process ended."""

    #: The exit code, if it ended by itself.
    code: int | None
    #: The signal that killed it, if one did.
    signal: int | None
    #: Whether something in the sandbox was killed because it was at its memory limit.
    oom_killed: bool

    @property
    def success(self) -> bool:
        """Whether it ended by itself with exit code 0."""
        return self.code == 0

    @property
    def returncode(self) -> int:
        """The exit code, or the signal's number below zero, as ``subprocess`` has it."""
        return self.code if self.code is not None else -(self.signal or 0)


@dataclasses.dataclass(frozen=True)
class Output:
    """What a process wrote, and how it ended."""

    stdout: bytes
    stderr: bytes
    status: ExitStatus


class _Handle(Protocol):
    def fileno(self) -> int: ...
    def pid(self) -> int: ...
    def wait(self, timeout: float | None) -> tuple[int | None, int | None, bool] | None: ...
    def kill(self, signal: int) -> None: ...
    def take_stream(self, stream: int) -> int | None: ...
    def take_terminal(self) -> int | None: ...


class _Running(Closing):
    """What a sandbox and a further process in it have in common."""

    #: The writing end of standard input, if that is piped.
    stdin: io.BufferedWriter | None
    #: The reading end of standard output, if that is piped.
    stdout: io.BufferedReader | None
    #: The reading end of standard error, if that is piped.
    stderr: io.BufferedReader | None
    #: The master of the terminal, if one was asked for.
    terminal: io.FileIO | None
    #: How it ended, once that was seen.
    status: ExitStatus | None

    def __init__(self, handle: _Handle) -> None:
        self._running = handle
        self._pid = handle.pid()
        self.status = None
        numbers = [handle.take_stream(stream) for stream in range(3)]
        terminal = handle.take_terminal()
        self.stdin = None if numbers[0] is None else open(numbers[0], "wb")
        self.stdout = None if numbers[1] is None else open(numbers[1], "rb")
        self.stderr = None if numbers[2] is None else open(numbers[2], "rb")
        self.terminal = None if terminal is None else open(terminal, "r+b", buffering=0)

    @property
    def pid(self) -> int:
        """The process id, as the host sees it; 0 if the process had ended before it could be asked."""
        return self._pid

    @property
    def returncode(self) -> int | None:
        """As ``subprocess`` has it: None until :meth:`wait` or :meth:`poll` has seen the end."""
        return None if self.status is None else self.status.returncode

    def fileno(self) -> int:
        """A descriptor that becomes readable when the process has ended, for ``select`` and event loops."""
        return self._running.fileno()

    def _look(self, timeout: float | None) -> ExitStatus | None:
        if self.status is None:
            ended = self._running.wait(timeout)
            if ended is not None:
                self.status = ExitStatus(*ended)
        return self.status

    def poll(self) -> ExitStatus | None:
        """How it ended, or None if it still runs."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> ExitStatus:
        """Waits until it has ended, at most ``timeout`` seconds; :class:`TimedOutError` after that."""
        status = self._look(timeout)
        if status is None:
            raise TimedOutError(f"process {self.pid} did not end in {timeout} seconds")
        return status

    async def wait_async(self) -> ExitStatus:
        """Waits until it has ended, while the event loop goes on. No thread is used."""
        status = self.poll()
        if status is not None:
            return status
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        # A descriptor of its own: others may wait for the same process.
        descriptor = os.dup(self.fileno())

        def ended() -> None:
            if not future.done():
                future.set_result(None)

        loop.add_reader(descriptor, ended)
        try:
            await future
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        return self.wait()

    def kill(self, signal: int = signals.SIGKILL) -> None:
        """Sends a signal. A process that has ended already is no error."""
        self._running.kill(int(signal))

    def terminate(self) -> None:
        """Sends SIGTERM."""
        self.kill(signals.SIGTERM)

    def communicate(self, input: bytes | None = None, timeout: float | None = None) -> Output:
        """Writes ``input`` to standard input and closes it, collects what is piped, and waits.

        After ``timeout`` seconds :class:`TimedOutError` is raised, and the process still runs.
        """
        end = None if timeout is None else time.monotonic() + timeout
        parts: dict[IO[bytes], list[bytes]] = {}
        left = memoryview(input or b"")
        with selectors.DefaultSelector() as selector:
            if self.stdin is not None and not self.stdin.closed:
                self.stdin.flush()
                os.set_blocking(self.stdin.fileno(), False)
                selector.register(self.stdin, selectors.EVENT_WRITE)
            elif left:
                raise ValueError("input was given, but standard input is not piped")
            for stream in (self.stdout, self.stderr):
                if stream is not None and not stream.closed:
                    parts[stream] = []
                    selector.register(stream, selectors.EVENT_READ)
            while selector.get_map():
                ready = selector.select(None if end is None else max(0.0, end - time.monotonic()))
                if not ready and end is not None and time.monotonic() >= end:
                    raise TimedOutError(f"process {self.pid} did not end in {timeout} seconds")
                for key, _ in ready:
                    if key.fileobj is self.stdin:
                        try:
                            left = left[os.write(key.fd, left[:_CHUNK]) if left else 0 :]
                        except BlockingIOError:
                            continue
                        except BrokenPipeError:
                            left = left[:0]
                        if not left:
                            selector.unregister(key.fileobj)
                            self._close_stdin()
                    else:
                        data = os.read(key.fd, _CHUNK)
                        assert isinstance(key.fileobj, io.BufferedReader)
                        if data:
                            parts[key.fileobj].append(data)
                        else:
                            selector.unregister(key.fileobj)
                            key.fileobj.close()
        status = self.wait(None if end is None else max(0.0, end - time.monotonic()))
        out = b"".join(parts.get(self.stdout, [])) if self.stdout is not None else b""
        err = b"".join(parts.get(self.stderr, [])) if self.stderr is not None else b""
        return Output(out, err, status)

    def _close_stdin(self) -> None:
        if self.stdin is not None:
            try:
                self.stdin.close()
            except BrokenPipeError:
                # The process ended without reading what was buffered.
                pass

    def _close_streams(self) -> None:
        self._close_stdin()
        for stream in (self.stdout, self.stderr, self.terminal):
            if stream is not None:
                stream.close()


#: What a pipe holds.
_CHUNK = 65536


class Process(_Running):
    """A further process in a sandbox, started by :meth:`Sandbox.exec`. Leaving a ``with`` block kills it."""

    def __init__(self, handle: _native._Process) -> None:
        self._handle = handle
        super().__init__(handle)

    def close(self) -> None:
        """Kills the process, if it still runs, and closes its streams."""
        self._close_streams()
        self._handle.close()
