"""Sandboxes in an event loop of :mod:`asyncio`: the names of the package, with ``await``. No threads are used to wait.

::

    from gpucontainer import PIPE, aio

    async with aio.Sandbox("debian:12", ["sh", "-c", "echo a; echo b"], stdout=PIPE) as sandbox:
        async for line in sandbox.stdout:
            print(line)
        status = await sandbox.wait()

What waits for a process waits for its descriptor in the loop. What does keep the loop from going on: a start (of a sandbox or
of a further process) and :meth:`Sandbox.close`, some milliseconds each; and a start for which an image has to be pulled,
or whose GPUs somebody else has, as long as that takes. :func:`pull` first, and take a lease first, where that may be.

Cancelling a task: :func:`run`, and leaving the ``async with`` block of a :class:`Sandbox`, kill everything inside and give
everything back. Other methods (``wait``, ``communicate``, ``wait_ready``, reading) end without effect on the sandbox, and
a further call goes on where the cancelled one stopped. A task is not cancelled amid a start or a close.
"""

from __future__ import annotations

import asyncio
import signal as signals
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast, overload

from . import _native, process, sandbox
from .aio_streams import Reader, Writer
from .completed import Completed, prepared, usage
from .errors import ClosedError, TimedOutError, TimeoutExpiredError
from .options import known
from .process import ExitStatus, Output, Text
from .streams import Coding

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self, Unpack

    from .completed import _Bytes, _ImageLike
    from .options import ExecOptions, SandboxOptions

__all__ = ["Process", "Reader", "Sandbox", "Writer", "pull", "push", "run"]

_T = TypeVar("_T")

#: Seconds that what was killed may take to end, and its pipes with it.
_DYING = 30.0

#: Seconds between two attempts to connect to a server that is waited for: the first, and the longest.
_PAUSES = 0.001, 0.05


class _Running(Generic[Text]):
    """What a sandbox and a further process in it have in common."""

    #: The writing end of standard input, if that is piped.
    stdin: Writer[Text] | None = None
    #: The reading ends of standard output and standard error, if they are piped.
    stdout: Reader[Text] | None = None
    stderr: Reader[Text] | None = None

    _running: process._Running[Text] | None = None
    _fed = False

    def _below(self) -> process._Running[Text]:
        if self._running is None:
            raise ClosedError("the sandbox was not started: `async with` or `await` starts it")
        return self._running

    async def _attach(self, running: process._Running[Text]) -> None:
        self._running = running
        coding = running._coding
        try:
            if running.stdin is not None:
                self.stdin = await Writer.of(running.stdin, coding)
            if running.stdout is not None:
                self.stdout = await Reader.of(running.stdout, coding)
            if running.stderr is not None:
                self.stderr = await Reader.of(running.stderr, coding)
        except BaseException:
            self._let_go()
            running.close()
            raise

    def _let_go(self) -> None:
        """Takes the pipes from the event loop."""
        if self.stdin is not None:
            self.stdin._abort()
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()

    @property
    def args(self) -> Sequence[str] | None:
        """The command, as it was given."""
        return self._below().args

    @property
    def pid(self) -> int:
        """The process id, as the host sees it."""
        return self._below().pid

    @property
    def returncode(self) -> ExitStatus | None:
        """None until the end was seen."""
        return self._below().returncode

    def fileno(self) -> int:
        """A descriptor that becomes readable when the process has ended."""
        return self._below().fileno()

    def poll(self) -> ExitStatus | None:
        """How it ended, or None if it still runs."""
        return self._below().poll()

    def kill(self, signal: int = signals.SIGKILL) -> None:
        """Sends a signal. A process that has ended already is no error."""
        self._below().kill(signal)

    def terminate(self) -> None:
        """Sends SIGTERM."""
        self.kill(signals.SIGTERM)

    def send_signal(self, sig: int) -> None:
        """Sends a signal. A process that has ended already is no error."""
        self.kill(sig)

    async def wait(self, timeout: float | None = None) -> ExitStatus:
        """Waits until it has ended, at most ``timeout`` seconds; :class:`~errors.TimeoutExpiredError` after that."""
        below = self._below()
        status = below.poll()
        if status is not None:
            return status
        try:
            return await asyncio.wait_for(below.wait_async(), timeout)
        except asyncio.TimeoutError:
            assert timeout is not None
            raise TimeoutExpiredError(below._named(), timeout) from None

    async def communicate(self, input: Text | None = None, timeout: float | None = None) -> Output[Text]:
        """Writes ``input`` to standard input and closes it, collects what is piped, and waits.

        After ``timeout`` seconds :class:`~errors.TimeoutExpiredError` is raised, with the output so far; the process
        still runs then, and a further call goes on where this one stopped.
        """
        below = self._below()
        if not self._fed:
            if input and self.stdin is None:
                raise ValueError("input was given, but standard input is not piped")
            if self.stdin is not None:
                if input and not self.stdin.is_closing():
                    self.stdin.write(input)
                self.stdin.close()
            self._fed = True
        elif input:
            raise ValueError("input was given, but an earlier call has input already and goes on with that")
        try:
            await asyncio.wait_for(self._exchange(), timeout)
        except asyncio.TimeoutError:
            assert timeout is not None
            raise TimeoutExpiredError(below._named(), timeout, *self._collected()) from None
        status = below.poll()
        assert status is not None
        return Output(*self._collected(), status)

    async def _exchange(self) -> None:
        streams = [one for one in (self.stdout, self.stderr) if one is not None]
        # If one is not of text, the other is read to its end all the same.
        for failure in await asyncio.gather(*(one._collect() for one in streams), return_exceptions=True):
            if failure is not None:
                raise failure
        if self.stdin is not None:
            await self.stdin.wait_closed()
        await self._below().wait_async()

    def _collected(self) -> tuple[Text, Text]:
        nothing = cast("Text", "" if self._below()._coding.text else b"")
        stdout, stderr = (nothing if one is None else one._so_far() for one in (self.stdout, self.stderr))
        return stdout, stderr

    async def close(self) -> None:
        """Kills it, if it still runs, and gives everything back. Closing twice is no error."""
        if self._running is None:
            return
        self._let_go()
        try:
            self._running.close()
        finally:
            # The loop lets go of the pipes in its next turn.
            await asyncio.sleep(0)

    async def __aenter__(self) -> Self:
        self._below()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Sandbox(_Running[Text], Generic[Text]):
    """A running application. ``async with`` starts it, and kills everything inside in the end; so does ``await``, without the
    end: then :meth:`close` it.

    It takes what :class:`gpucontainer.Sandbox` takes, and what needs no waiting is at :attr:`sandbox`.
    """

    @overload
    def __init__(
        self: Sandbox[str],
        image: _ImageLike,
        command: Sequence[str] | None = None,
        *,
        text: Literal[True],
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[SandboxOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: Sandbox[str],
        image: _ImageLike,
        command: Sequence[str] | None = None,
        *,
        text: bool | None = None,
        encoding: str,
        errors: str | None = None,
        **options: Unpack[SandboxOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: Sandbox[bytes],
        image: _ImageLike,
        command: Sequence[str] | None = None,
        *,
        text: Literal[False] | None = None,
        encoding: None = None,
        errors: None = None,
        **options: Unpack[SandboxOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: Sandbox[Any],
        image: _ImageLike,
        command: Sequence[str] | None = None,
        *,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[SandboxOptions],
    ) -> None: ...

    def __init__(
        self,
        image: _ImageLike,
        command: Sequence[str] | None = None,
        *,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        **options: Any,
    ) -> None:
        """Only remembers what is wanted."""
        known(options)
        self._wanted = (image, command), {"text": text, "encoding": encoding, "errors": errors, **options}

    async def _start(self) -> Self:
        if self._running is not None:
            raise ClosedError("the sandbox was started already")
        arguments, options = self._wanted
        start = cast("type[sandbox.Sandbox[Text]]", sandbox.Sandbox)
        await self._attach(start(*arguments, **options))
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        return self._start().__await__()

    async def __aenter__(self) -> Self:
        return self if self._running is not None else await self._start()

    @property
    def sandbox(self) -> sandbox.Sandbox[Text]:
        """The sandbox itself: its ports, GPUs, limits, statistics. Its streams, and its methods that wait, are not to be used."""
        return cast("sandbox.Sandbox[Text]", self._below())

    @property
    def name(self) -> str:
        """The name."""
        return self.sandbox.name

    async def wait_ready(self, port: int, timeout: float | None = None) -> None:
        """Waits until something accepts connections at a TCP port inside, published or not.

        :param timeout: seconds, after which :class:`~errors.TimedOutError` is raised; None is as long as the application
            runs. As soon as that has ended :class:`~errors.ClosedError` is raised, with how.
        """
        below = self.sandbox
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout of {timeout}: it is a number of seconds, not below zero")
        end = None if timeout is None else time.monotonic() + timeout
        pause, longest = _PAUSES
        while True:
            left = None if end is None else end - time.monotonic()
            try:
                # One attempt, which waits for nothing.
                return below.wait_ready(port, timeout=0)
            except TimedOutError:
                if left is not None and left <= 0:
                    raise
            try:
                # Wakes at once when the application ends.
                await asyncio.wait_for(below.wait_async(), pause if left is None else min(pause, left))
            except asyncio.TimeoutError:
                pause = min(pause * 2, longest)

    @overload
    async def exec(
        self,
        command: Sequence[str],
        *,
        text: Literal[True],
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[ExecOptions],
    ) -> Process[str]: ...
    @overload
    async def exec(
        self,
        command: Sequence[str],
        *,
        text: bool | None = None,
        encoding: str,
        errors: str | None = None,
        **options: Unpack[ExecOptions],
    ) -> Process[str]: ...
    @overload
    async def exec(
        self,
        command: Sequence[str],
        *,
        text: Literal[False] | None = None,
        encoding: None = None,
        errors: None = None,
        **options: Unpack[ExecOptions],
    ) -> Process[bytes]: ...
    @overload
    async def exec(
        self,
        command: Sequence[str],
        *,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[ExecOptions],
    ) -> Process[Any]: ...
    async def exec(self, command: Sequence[str], **options: Any) -> Process[Any]:
        """Starts a further process inside; it takes what :meth:`gpucontainer.Sandbox.exec` takes."""
        started: Process[Any] = Process()
        await started._attach(self.sandbox.exec(command, **options))
        return started

    async def detach(self) -> None:
        """Lets the application live on when this object and this process are gone. Published ports close."""
        below = self.sandbox
        self._let_go()
        below.detach()
        await asyncio.sleep(0)

    def __repr__(self) -> str:
        return "<gpucontainer.aio.Sandbox not started>" if self._running is None else f"<aio of {self._running!r}>"


class Process(_Running[Text], Generic[Text]):
    """A further process in a sandbox, started by :meth:`Sandbox.exec`. Leaving an ``async with`` block kills it."""

    def __repr__(self) -> str:
        return f"<aio of {self._running!r}>"


@overload
async def run(
    image: _ImageLike,
    command: Sequence[str] | None = None,
    *,
    check: bool = False,
    timeout: float | None = None,
    input: str | None = None,
    capture_output: bool = False,
    text: Literal[True],
    encoding: str | None = None,
    errors: str | None = None,
    **options: Unpack[SandboxOptions],
) -> Completed[str]: ...
@overload
async def run(
    image: _ImageLike,
    command: Sequence[str] | None = None,
    *,
    check: bool = False,
    timeout: float | None = None,
    input: str | None = None,
    capture_output: bool = False,
    text: bool | None = None,
    encoding: str,
    errors: str | None = None,
    **options: Unpack[SandboxOptions],
) -> Completed[str]: ...
@overload
async def run(
    image: _ImageLike,
    command: Sequence[str] | None = None,
    *,
    check: bool = False,
    timeout: float | None = None,
    input: _Bytes | None = None,
    capture_output: bool = False,
    text: Literal[False] | None = None,
    encoding: None = None,
    errors: None = None,
    **options: Unpack[SandboxOptions],
) -> Completed[bytes]: ...
@overload
async def run(
    image: _ImageLike,
    command: Sequence[str] | None = None,
    *,
    check: bool = False,
    timeout: float | None = None,
    input: _Bytes | str | None = None,
    capture_output: bool = False,
    text: bool | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    **options: Unpack[SandboxOptions],
) -> Completed[Any]: ...
async def run(
    image: _ImageLike,
    command: Sequence[str] | None = None,
    *,
    check: bool = False,
    timeout: float | None = None,
    input: _Bytes | str | None = None,
    capture_output: bool = False,
    text: bool | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    **options: Any,
) -> Completed[Any]:
    """Runs a program of an image to its end, as :func:`gpucontainer.run` does, which says what the arguments are.

    Cancelling it kills everything inside.
    """
    known(options)
    options = prepared(options, input, capture_output)
    if input is not None:
        # Nothing is started for what cannot be used.
        Coding(text, encoding, errors).bytes_of(input)
    start = cast("type[Sandbox[Any]]", Sandbox)
    async with start(image, command, text=text, encoding=encoding, errors=errors, **options) as running:
        try:
            output = await running.communicate(input, timeout)
        except TimeoutExpiredError as late:
            # What came between the deadline and the end is worth having, too.
            running.kill()
            try:
                await running.communicate(timeout=_DYING)
            except TimeoutExpiredError:
                pass
            late.output, late.stderr = running._collected()
            raise
        result = Completed(running.args, output.status, output.stdout, output.stderr, usage(running.sandbox))
    if check:
        result.check_returncode()
    return result


async def pull(store: _native.ImageStore, reference: str, **options: Any) -> _native.Image:
    """Pulls an image while the loop goes on; the options are those of :meth:`ImageStore.pull`.

    This and :func:`push`, which wait for a network and for the processor, are the ones here that have a thread of their
    own, which is gone when they return. ``progress`` is called in that. Cancelling the task ends the pull, and what was
    begun is undone first.
    """
    return await _apart("gpucontainer-pull", lambda cancel: store.pull(reference, cancel=cancel, **options), options)


async def push(store: _native.ImageStore, image: _native.Image, reference: str, **options: Any) -> str:
    """Pushes an image while the loop goes on; the options are those of :meth:`ImageStore.push`. See :func:`pull`."""
    return await _apart(
        "gpucontainer-push", lambda cancel: store.push(image, reference, cancel=cancel, **options), options
    )


async def _apart(name: str, work: Callable[[_native.Cancel], _T], options: dict[str, Any]) -> _T:
    """Does the work in a thread of its own. The switch that ends it is the caller's, if one is among the options."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_T] = loop.create_future()
    cancel: _native.Cancel = options.pop("cancel", None) or _native.Cancel()

    def run() -> None:
        try:
            result = work(cancel)
        except BaseException as error:
            loop.call_soon_threadsafe(_fail, done, error)
        else:
            loop.call_soon_threadsafe(done.set_result, result)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        cancel.cancel()
        await asyncio.wait({done})
        raise
    finally:
        thread.join()


def _fail(done: asyncio.Future[Any], error: BaseException) -> None:
    done.set_exception(error)
    # Whoever was cancelled does not ask for it.
    done.exception()
