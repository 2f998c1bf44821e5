"""A program of an image, run to its end."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, cast, overload

from .errors import CalledProcessError, TimeoutExpiredError, UnsupportedError
from .options import known
from .process import ExitStatus, Text
from .sandbox import Sandbox
from .streams import PIPE, Coding

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._native import Image
    from .options import SandboxOptions


#: How many bytes or letters of a stream `repr` shows.
_SHOWN = 1000


@dataclasses.dataclass(frozen=True)
class Usage:
    """What a sandbox used from its start to its end, all its processes together. None is what this host does not count."""

    #: Seconds of processor time, and of them those in programs and in the kernel.
    cpu: float | None
    cpu_user: float | None
    cpu_system: float | None
    #: The most bytes of memory that were in use at once, page cache included.
    memory_peak: int | None
    #: Bytes that went from and to block devices; None also where none was used.
    read_bytes: int | None
    written_bytes: int | None


class Completed(subprocess.CompletedProcess[Text], Generic[Text]):
    """A program that ran to its end: what ``subprocess.CompletedProcess`` has, and more."""

    #: The command, as it was given; None is the image's.
    args: Sequence[str] | None
    #: How it ended, as a number: the exit code, or the number of the signal that killed it below zero.
    returncode: ExitStatus
    #: What it wrote; empty where that was not captured.
    stdout: Text
    stderr: Text
    #: What its sandbox used; None where it had no control group.
    usage: Usage | None

    def __init__(
        self, args: Sequence[str] | None, returncode: ExitStatus, stdout: Text, stderr: Text, usage: Usage | None
    ) -> None:
        cast("Any", super()).__init__(args, returncode, stdout, stderr)
        self.usage = usage

    @property
    def oom_killed(self) -> bool:
        """Whether something in the sandbox was killed because it was at its memory limit."""
        return self.returncode.oom_killed

    def check_returncode(self) -> None:
        """Raises :class:`~errors.CalledProcessError` if it failed."""
        if self.returncode != 0:
            raise CalledProcessError(self)

    def __repr__(self) -> str:
        fields = [f"args={self.args!r}", f"returncode={int(self.returncode)}"]
        fields += [f"{name}={_shortened(value)}" for name in ("stdout", "stderr") if (value := getattr(self, name))]
        if self.oom_killed:
            fields.append("oom_killed=True")
        return f"Completed({', '.join(fields)}, usage={self.usage!r})"


if TYPE_CHECKING:
    from typing import TypeAlias

    _Bytes: TypeAlias = bytes | bytearray | memoryview
    _ImageLike: TypeAlias = str | Image | os.PathLike[str]


@overload
def run(
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
def run(
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
def run(
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
def run(
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
def run(
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
    """Runs a program of an image to its end, and everything inside ends with it.

    :param image: and ``command``, and every other option: those of :class:`Sandbox`, such as ``gpus``, ``memory``,
        ``cpus``, ``mounts``, ``ports`` and ``env``.
    :param check: raises :class:`~errors.CalledProcessError`, which has the result, if the program fails.
    :param timeout: seconds from the start of the program on. After them everything inside is killed, and
        :class:`~errors.TimeoutExpiredError` has what was written until then. Pulling an image, and waiting for GPUs,
        does not count.
    :param input: what the program reads from standard input; then ``stdin`` may not be given.
    :param capture_output: captures standard output and standard error; ``stdout=PIPE`` captures one of them.
    :param text: streams are of text, as also with ``encoding`` or ``errors``, and not of bytes.
    """
    known(options)
    options = prepared(options, input, capture_output)
    if input is not None:
        # Nothing is started for what cannot be used.
        Coding(text, encoding, errors).bytes_of(input)
    start = cast("type[Sandbox[Any]]", Sandbox)
    with start(image, command, text=text, encoding=encoding, errors=errors, **options) as sandbox:
        try:
            stdout, stderr = sandbox.communicate(input, timeout)
        except TimeoutExpiredError as late:
            # What came between the deadline and the end is worth having, too.
            late.output, late.stderr = sandbox._kill_and_collect()
            raise
        assert sandbox.status is not None
        result = Completed(sandbox.args, sandbox.status, stdout, stderr, usage(sandbox))
    if check:
        result.check_returncode()
    return result


def prepared(options: dict[str, Any], input: _Bytes | str | None, capture_output: bool) -> dict[str, Any]:
    """The options of a sandbox that a run with these needs."""
    if input is not None:
        if options.get("stdin") is not None:
            raise ValueError("stdin and input cannot both be given")
        options = {**options, "stdin": PIPE}
    if capture_output:
        if options.get("stdout") is not None or options.get("stderr") is not None:
            raise ValueError("stdout and stderr cannot be given with capture_output")
        options = {**options, "stdout": PIPE, "stderr": PIPE}
    return options


def usage(sandbox: Sandbox[Any]) -> Usage | None:
    """What a sandbox used until now, if anything counts it."""
    try:
        stats = sandbox.stats()
    except UnsupportedError:
        return None
    cpu, memory, io = stats["cpu"] or {}, stats["memory"] or {}, stats["io"]
    return Usage(
        cpu=_seconds(cpu.get("usage")),
        cpu_user=_seconds(cpu.get("user")),
        cpu_system=_seconds(cpu.get("system")),
        memory_peak=memory.get("peak"),
        read_bytes=sum(device["read_bytes"] for device in io) if io else None,
        written_bytes=sum(device["written_bytes"] for device in io) if io else None,
    )


def _shortened(text: bytes | str) -> str:
    # Much output is no help to who looks at it, and takes long to write out: asyncio does that for each task of `run`.
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}… ({len(text)} in all)"


def _seconds(duration: dict[str, int] | None) -> float | None:
    return None if duration is None else duration["secs"] + duration["nanos"] / 1e9
