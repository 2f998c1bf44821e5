"""Processes that run: their ends, their streams, waiting for them."""

from __future__ import annotations

import dataclasses
import os
import signal as signals
import time
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING, Generic, Protocol, cast

from . import _native
from .closing import Closing
from .errors import TimeoutExpiredError
from .exchange import Exchange, close_writing
from .streams import Coding

if TYPE_CHECKING:
    import io

    from typing_extensions import TypeVar

    Text = TypeVar("Text", bytes, str, default=bytes)
else:
    from typing import TypeVar

    Text = TypeVar("Text", bytes, str)

#: Seconds that what was killed may take to end, and its pipes with it.
_DYING = 30.0


class ExitStatus(int):
    """How a process ended: the number that ``subprocess`` has as ``returncode``, with what else is known.

    As a number it is the exit code, or the signal's number below zero.
    """

    #: The exit code, if it ended by itself.
    code: int | None
    #: The signal that killed it, if one did.
    signal: int | None
    #: Whether something in the sandbox was killed because it was at its memory limit.
    oom_killed: bool

    def __new__(cls, code: int | None, signal: int | None, oom_killed: bool) -> ExitStatus:
        self = super().__new__(cls, code if code is not None else -(signal or 0))
        self.code, self.signal, self.oom_killed = code, signal, oom_killed
        return self

    def __getnewargs__(self) -> tuple[int | None, int | None, bool]:  # type: ignore[override]
        return self.code, self.signal, self.oom_killed

    @property
    def success(self) -> bool:
        """Whether it ended by itself with exit code 0."""
        return self.code == 0

    @property
    def returncode(self) -> int:
        """The exit code, or the signal's number below zero, as ``subprocess`` has it."""
        return int(self)

    def __repr__(self) -> str:
        return f"ExitStatus(code={self.code}, signal={self.signal}, oom_killed={self.oom_killed})"

    def __str__(self) -> str:
        return str(int(self))


@dataclasses.dataclass(frozen=True)
class Output(Generic[Text]):
    """What a process wrote, and how it ended.

    ``stdout, stderr = sandbox.communicate()`` takes it apart as ``subprocess`` has it. What was not piped is empty.
    """

    #: What it wrote to standard output, if that was piped.
    stdout: Text
    #: What it wrote to standard error, if that was piped.
    stderr: Text
    #: How it ended.
    status: ExitStatus

    def __iter__(self) -> Iterator[Text]:
        return iter((self.stdout, self.stderr))


class _Handle(Protocol):
    def fileno(self) -> int: ...
    def pid(self) -> int: ...
    def wait(self, timeout: float | None) -> tuple[int | None, int | None, bool] | None: ...
    def kill(self, signal: int) -> None: ...
    def take_stream(self, stream: int) -> int | None: ...
    def take_terminal(self) -> int | None: ...


class _Running(Closing, Generic[Text]):
    """What a sandbox and a further process in it have in common: what ``subprocess.Popen`` has, by the same names."""

    #: The command, as it was given.
    args: Sequence[str] | None
    #: The writing end of standard input, if that is piped.
    stdin: IO[Text] | None
    #: The reading end of standard output, if that is piped.
    stdout: IO[Text] | None
    #: The reading end of standard error, if that is piped.
    stderr: IO[Text] | None
    #: The master of the terminal, if one was asked for.
    terminal: io.FileIO | None
    #: How it ended, once that was seen.
    status: ExitStatus | None

    def __init__(self, handle: _Handle, args: Sequence[str] | None, coding: Coding, stdout: int | None = None) -> None:
        self._running = handle
        self._pid = handle.pid()
        self._coding = coding
        self._exchange: Exchange | None = None
        self.args = args
        self.status = None
        numbers = [handle.take_stream(stream) for stream in range(3)]
        if stdout is not None:
            numbers[1] = stdout
        terminal = handle.take_terminal()
        self.stdin = None if numbers[0] is None else coding.opened(numbers[0], "w")
        self.stdout = None if numbers[1] is None else coding.opened(numbers[1], "r")
        self.stderr = None if numbers[2] is None else coding.opened(numbers[2], "r")
        self.terminal = None if terminal is None else open(terminal, "r+b", buffering=0)

    @property
    def pid(self) -> int:
        """The process id, as the host sees it; 0 if the process had ended before it could be asked."""
        return self._pid

    @property
    def returncode(self) -> ExitStatus | None:
        """As ``subprocess`` has it: None until :meth:`wait` or :meth:`poll` has seen the end."""
        return self.status

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
        """Waits until it has ended, at most ``timeout`` seconds; :class:`~errors.TimeoutExpiredError` after that."""
        status = self._look(timeout)
        if status is None:
            assert timeout is not None
            raise TimeoutExpiredError(self._named(), timeout)
        return status

    async def wait_async(self) -> ExitStatus:
        """Waits until it has ended, while the event loop goes on. No thread is used."""
        import asyncio

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

    def send_signal(self, sig: int) -> None:
        """Sends a signal. A process that has ended already is no error."""
        self.kill(sig)

    def communicate(self, input: Text | None = None, timeout: float | None = None) -> Output[Text]:
        """Writes ``input`` to standard input and closes it, collects what is piped, and waits.

        After ``timeout`` seconds :class:`~errors.TimeoutExpiredError` is raised, with the output so far; the process
        still runs then, and a further call goes on where this one stopped.
        """
        end = None if timeout is None else time.monotonic() + timeout
        if self._exchange is None:
            self._exchange = self._begin(input)
        elif input:
            raise ValueError("input was given, but an earlier call has input already and goes on with that")
        exchange = self._exchange
        coding = self._coding
        out, err = self.stdout, self.stderr
        if exchange.run(end):
            status = self._look(None if end is None else max(0.0, end - time.monotonic()))
            if status is not None:
                stdout, stderr = (coding.result(exchange.collected(stream)) for stream in (out, err))
                return Output(cast("Text", stdout), cast("Text", stderr), status)
        assert timeout is not None
        stdout, stderr = (coding.so_far(exchange.collected(stream)) for stream in (out, err))
        raise TimeoutExpiredError(self._named(), timeout, stdout, stderr)

    def _kill_and_collect(self) -> tuple[Text, Text]:
        """Kills it, and gives back what it had written to what is piped."""
        self.kill()
        assert self._exchange is not None
        self._exchange.run(time.monotonic() + _DYING)
        collected = (self._exchange.collected(stream) for stream in (self.stdout, self.stderr))
        stdout, stderr = (self._coding.so_far(data) for data in collected)
        return stdout, stderr

    def _begin(self, input: Text | None) -> Exchange:
        data = self._coding.bytes_of(input) if input is not None else memoryview(b"")
        stdin = self.stdin if self.stdin is not None and not self.stdin.closed else None
        if stdin is not None:
            try:
                stdin.flush()
            except BrokenPipeError:
                # It has ended, or reads no more.
                pass
        elif data:
            raise ValueError("input was given, but standard input is not piped")
        outputs = [stream for stream in (self.stdout, self.stderr) if stream is not None and not stream.closed]
        return Exchange(stdin, outputs, data)

    def _named(self) -> list[str]:
        """What runs, in words for errors."""
        return list(self.args or ())

    def _close_streams(self) -> None:
        if self.stdin is not None:
            close_writing(self.stdin)
        for stream in (self.stdout, self.stderr, self.terminal):
            if stream is not None:
                stream.close()


class Process(_Running[Text], Generic[Text]):
    """A further process in a sandbox, started by :meth:`Sandbox.exec`. Leaving a ``with`` block kills it."""

    def __init__(
        self, handle: _native._Process, args: Sequence[str], coding: Coding, stdout: int | None = None
    ) -> None:
        self._handle = handle
        super().__init__(handle, args, coding, stdout)

    def close(self) -> None:
        """Kills the process, if it still runs, and closes its streams."""
        self._close_streams()
        self._handle.close()

    def __repr__(self) -> str:
        state = "running" if self.status is None else repr(self.status)
        return f"<gpucontainer.Process {self.args!r} {state}>"
