"""Where the streams of a process lead, and what they carry."""

from __future__ import annotations

import codecs
import io
import os
import subprocess
from typing import IO, TYPE_CHECKING, Any, TypeAlias, cast

if TYPE_CHECKING:
    from typing_extensions import Self

#: For ``stdin``, ``stdout`` and ``stderr``: a pipe, the null device; for ``stderr``: where standard output goes. The same
#: as those of ``subprocess``.
PIPE = subprocess.PIPE
DEVNULL = subprocess.DEVNULL
STDOUT = subprocess.STDOUT

_Stream: TypeAlias = int | IO[Any] | None


class Joined:
    """Lets standard error go where standard output goes, if the arguments of a start want that.

    Leaving a ``with`` block closes what nobody took.
    """

    def __init__(self, given: dict[str, Any]) -> None:
        self._reader: int | None = None
        self._writer: int | None = None
        if not _is(given["stderr"], STDOUT):
            return
        wanted = given["stdout"]
        if _is(wanted, PIPE):
            # One pipe for both.
            self._reader, self._writer = os.pipe()
            wanted = given["stdout"] = self._writer
        given["stderr"] = 1 if wanted is None else wanted

    def take(self) -> int | None:
        """The reading end of the pipe, if there is one."""
        reader, self._reader = self._reader, None
        return reader

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in (self._reader, self._writer):
            if descriptor is not None:
                os.close(descriptor)


def stream(name: str, value: int | IO[Any]) -> str | int:
    """A stream as the native half wants it."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value == PIPE:
            return "pipe"
        if value == DEVNULL:
            return "null"
        if value >= 0:
            return value
        raise ValueError(f"{name} of {value}: it is PIPE, DEVNULL, a file or the number of a descriptor")
    if isinstance(value, bool) or not hasattr(value, "fileno"):
        raise TypeError(f"{name} is PIPE, DEVNULL, a file or the number of a descriptor, not {type(value).__name__}")
    return value.fileno()


def _is(value: object, constant: int) -> bool:
    return isinstance(value, int) and value == constant


class Coding:
    """How text becomes bytes and back; without an encoding there is none."""

    def __init__(self, text: bool | None, encoding: str | None, errors: str | None) -> None:
        for name, value in (("encoding", encoding), ("errors", errors)):
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{name} is a string, not {value!r}")
        self.text = bool(text or encoding or errors)
        #: None leaves it to Python, as for ``open``.
        self.encoding = encoding
        self.errors = errors

    def opened(self, number: int, mode: str) -> IO[Any]:
        """A file object for a descriptor, which it closes in the end."""
        binary: Any = open(number, mode + "b")
        if not self.text:
            return cast("IO[Any]", binary)
        return io.TextIOWrapper(
            binary, encoding=self.encoding, errors=self.errors, write_through=mode == "w", line_buffering=mode == "w"
        )

    def bytes_of(self, input: Any) -> memoryview:
        """The bytes of what is to be written."""
        if not self.text:
            if isinstance(input, str):
                raise TypeError("input is bytes, or text with text=True or an encoding, not str")
            try:
                return memoryview(input).cast("B")
            except TypeError:
                raise TypeError(f"input is bytes, not {type(input).__name__}") from None
        if not isinstance(input, str):
            raise TypeError(f"input is text, not {type(input).__name__}")
        return memoryview(input.encode(self._name(), self.errors or "strict"))

    def result(self, data: bytes) -> Any:
        """What was read to its end, with the line ends of Python."""
        if not self.text:
            return data
        return _lines(data.decode(self._name(), self.errors or "strict"))

    def so_far(self, data: bytes) -> Any:
        """What was read of something longer, which may have been cut amid a letter."""
        if not self.text:
            return data
        decoder = codecs.getincrementaldecoder(self._name())
        try:
            return _lines(decoder(self.errors or "strict").decode(data))
        except UnicodeDecodeError:
            # Somebody asks how far it came, not whether it is right.
            return _lines(decoder("replace").decode(data))

    def decoder(self) -> io.IncrementalNewlineDecoder | None:
        """What makes text, with the line ends of Python, of what comes bit by bit; None leaves it bytes."""
        if not self.text:
            return None
        decoder = codecs.getincrementaldecoder(self._name())(self.errors or "strict")
        return io.IncrementalNewlineDecoder(decoder, translate=True)

    def _name(self) -> str:
        # What `open` would take.
        return self.encoding or io.TextIOWrapper(io.BytesIO()).encoding


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
