"""What can go wrong: one class for each cause, all of them :class:`Error`.

Causes that Python has a class for are of that class as well, so ``except FileNotFoundError`` and
``except gpucontainer.Error`` both work.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .completed import Completed


class Error(Exception):
    """Base of everything that the library raises on purpose."""

    #: What was wanted, which call failed, on what, and why.
    message: str
    #: The number of the system call that failed, if one did.
    errno: int | None
    #: The file that the error is about, if it is about one.
    filename: str | None

    def __init__(self, message: str, errno: int | None = None, filename: str | os.PathLike[str] | None = None) -> None:
        Exception.__init__(self, message)
        self._fill(message, errno, filename)

    def _fill(self, message: str, errno: int | None, filename: str | os.PathLike[str] | None) -> None:
        self.message = message
        self.errno = errno
        self.filename = None if filename is None else os.fspath(filename)

    def __str__(self) -> str:
        return self.message

    def __reduce__(
        self,
    ) -> tuple[type[Error], tuple[str, int | None, str | None]]:
        # Exceptions cross process boundaries in multiprocessing and concurrent.futures.
        return type(self), (self.message, self.errno, self.filename)


class SystemCallError(Error, OSError):
    """A system call failed; ``errno`` says how, and ``filename`` on what."""

    def __init__(self, message: str, errno: int | None = None, filename: str | os.PathLike[str] | None = None) -> None:
        OSError.__init__(self, errno, message, filename)
        self._fill(message, errno, filename)


class InvalidArgumentError(Error, ValueError):
    """A value cannot be used; nothing was changed."""


class InvalidReferenceError(Error, ValueError):
    """An image reference that does not follow the grammar ``[host[:port]/]name[:tag][@digest]``."""


class ImageNotFoundError(Error, LookupError):
    """No such image, here or in its registry."""


class InvalidImageError(Error):
    """An image's manifest, index or configuration is malformed or not for this platform."""


class InvalidLayerError(Error):
    """A layer whose archive is malformed, truncated, too large, or tries to leave its directory."""


class DigestMismatchError(Error):
    """Bytes that do not have the digest or the size that was promised for them."""


class AuthenticationError(Error):
    """The registry refused the credentials, or wants some."""


class NetworkError(Error):
    """The registry could not be reached, or the connection broke."""


class RegistryError(Error):
    """The registry answered something that its protocol does not allow."""


class CommandNotFoundError(Error):
    """The command does not exist inside the container, or is no executable file there."""


class UserNotFoundError(Error, LookupError):
    """The user or group does not exist inside the container."""


class WorkingDirectoryNotFoundError(Error):
    """The working directory does not exist inside the container, or leads outside of it."""


class NotFoundError(SystemCallError, FileNotFoundError):
    """Something else that was named does not exist."""


class AlreadyExistsError(SystemCallError, FileExistsError):
    """Something of that name exists already."""


class LimitNotAppliedError(Error):
    """A resource limit could not be applied."""


class PortInUseError(Error):
    """The host port is taken."""


class GpuUnavailableError(Error):
    """No GPU, or not the GPUs that were asked for; the message says why."""


class PermissionDeniedError(SystemCallError, PermissionError):
    """The process lacks a privilege."""


class NoSpaceError(SystemCallError):
    """The file system or a quota is full."""


class UnsupportedError(Error):
    """This host, its kernel or its configuration lacks something; the message names it."""


class BusyError(SystemCallError):
    """The thing is in use."""


class ClosedError(Error):
    """The thing has ended already, or was closed."""


class CancelledError(Error):
    """The caller cancelled the work."""


class TimedOutError(SystemCallError, TimeoutError):
    """The time that the caller allowed has passed."""


class CorruptError(Error):
    """Data of the library's own is damaged."""


class TimeoutExpiredError(TimedOutError, subprocess.TimeoutExpired):
    """A process did not end in the time that it was given. Also what ``subprocess`` raises then."""

    if TYPE_CHECKING:
        output: Any
        stdout: Any
        stderr: Any

    def __init__(
        self, cmd: Sequence[str], timeout: float, output: bytes | str | None = None, stderr: bytes | str | None = None
    ) -> None:
        super().__init__(f"{_command(cmd)} did not end in {timeout} seconds")
        #: The command.
        self.cmd = cmd
        #: The seconds that it was given.
        self.timeout = timeout
        #: What it had written to standard output by then, if that was captured; ``stdout`` is the same.
        self.output = output
        #: What it had written to standard error by then, if that was captured.
        self.stderr = stderr

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.cmd, self.timeout, self.output, self.stderr)


class CalledProcessError(Error, subprocess.CalledProcessError):
    """A program that was run to its end has failed. Also what ``subprocess`` raises then."""

    def __init__(self, result: Completed[Any]) -> None:
        status = result.returncode
        how = (
            f"ended with exit code {status.code}"
            if status.code is not None
            else f"was killed by signal {status.signal}"
        )
        limit = ", at the memory limit" if status.oom_killed else ""
        words = f"{_command(result.args)} {how}{limit}"
        said = _tail(result.stderr)
        super().__init__(f"{words}; the end of its standard error: {said}" if said else words)
        #: All that is known of it.
        self.result = result
        self.returncode = status
        self.cmd = result.args
        self.output = result.stdout
        self.stderr = result.stderr

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.result,)


def _command(words: Sequence[str] | None) -> str:
    return f"the command {list(words)!r}" if words else "the image's command"


def _tail(text: bytes | str | None) -> str:
    """The last words of what a program wrote, for people."""
    if not text:
        return ""
    said = text if isinstance(text, str) else text.decode(errors="replace")
    said = said.strip()
    return said if len(said) <= 500 else "…" + said[-500:]


_BY_KIND: dict[str, type[Error]] = {
    "InvalidArgument": InvalidArgumentError,
    "InvalidReference": InvalidReferenceError,
    "ImageNotFound": ImageNotFoundError,
    "InvalidImage": InvalidImageError,
    "InvalidLayer": InvalidLayerError,
    "DigestMismatch": DigestMismatchError,
    "Authentication": AuthenticationError,
    "Network": NetworkError,
    "Registry": RegistryError,
    "CommandNotFound": CommandNotFoundError,
    "UserNotFound": UserNotFoundError,
    "WorkingDirectoryNotFound": WorkingDirectoryNotFoundError,
    "NotFound": NotFoundError,
    "AlreadyExists": AlreadyExistsError,
    "LimitNotApplied": LimitNotAppliedError,
    "PortInUse": PortInUseError,
    "GpuUnavailable": GpuUnavailableError,
    "PermissionDenied": PermissionDeniedError,
    "NoSpace": NoSpaceError,
    "Unsupported": UnsupportedError,
    "Busy": BusyError,
    "Closed": ClosedError,
    "Cancelled": CancelledError,
    "TimedOut": TimedOutError,
    "Corrupt": CorruptError,
    "SystemCall": SystemCallError,
}


def _from_native(kind: str, message: str, errno: int | None, filename: str | os.PathLike[str] | None) -> Error:
    return _BY_KIND.get(kind, Error)(message, errno, filename)
