"""The streams of a process in an event loop."""

from __future__ import annotations

import asyncio
from typing import IO, TYPE_CHECKING, Any, Generic, cast

from .process import Text

if TYPE_CHECKING:
    from typing_extensions import Self

    from .streams import Coding

#: What a pipe holds.
_CHUNK = 65536


class Reader(Generic[Text]):
    """The reading end of a pipe: ``async for line in reader``. Lines may be of any length."""

    def __init__(self, stream: asyncio.StreamReader, transport: asyncio.ReadTransport, coding: Coding) -> None:
        self._stream = stream
        self._transport = transport
        self._decoder = coding.decoder()
        self._newline: Any = "\n" if coding.text else b"\n"
        self._nothing: Any = "" if coding.text else b""
        # What was read and nobody has taken yet, and where that begins.
        self._buffer: Any = self._nothing
        self._at = 0
        self._collected: list[Any] = []
        self._ended = False

    @classmethod
    async def of(cls, file: IO[Text], coding: Coding) -> Reader[Text]:
        """A reader of what is piped, which closes it in the end."""
        loop = asyncio.get_running_loop()
        stream = asyncio.StreamReader(limit=_CHUNK, loop=loop)
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream, loop=loop), file)
        return cls(stream, transport, coding)

    async def read(self, n: int = -1) -> Text:
        """All until the end; or at most ``n`` bytes or letters, as soon as there are some. Empty at the end."""
        if n == 0:
            return cast("Text", self._nothing)
        parts = [self._take(n)]
        while (n < 0 or not parts[-1]) and await self._more():
            parts.append(self._take(n))
        return cast("Text", self._nothing.join(parts))

    async def readline(self) -> Text:
        """The next line with its end; empty at the end."""
        parts = []
        while True:
            end = self._buffer.find(self._newline, self._at)
            if end >= 0:
                parts.append(self._take(end + 1 - self._at))
                break
            parts.append(self._take(-1))
            if not await self._more():
                break
        return cast("Text", self._nothing.join(parts))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Text:
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line

    def close(self) -> None:
        """Reads no more; the process gets SIGPIPE when it writes."""
        self._transport.close()

    async def _more(self) -> bool:
        """Waits for more; False at the end. A wait that is cancelled loses nothing."""
        while not self._ended:
            data = await self._stream.read(_CHUNK)
            self._ended = not data
            new = data if self._decoder is None else self._decoder.decode(data, final=not data)
            if new:
                self._buffer = self._buffer[self._at :] + new
                self._at = 0
                return True
        return False

    def _take(self, count: int) -> Any:
        """What was read already, at most so much of it."""
        if count < 0 or self._at + count >= len(self._buffer):
            taken = self._buffer[self._at :]
            self._buffer, self._at = self._nothing, 0
        else:
            taken = self._buffer[self._at : self._at + count]
            self._at += count
        return taken

    async def _collect(self) -> None:
        """Reads to the end; what was cancelled goes on in a further call."""
        self._collected.append(self._take(-1))
        while await self._more():
            self._collected.append(self._take(-1))

    def _so_far(self) -> Text:
        return cast("Text", self._nothing.join(self._collected))


class Writer(asyncio.BaseProtocol, Generic[Text]):
    """The writing end of a pipe."""

    def __init__(self, coding: Coding) -> None:
        self._coding = coding
        self._open = asyncio.Event()
        self._open.set()
        self._closed = asyncio.Event()
        self._transport: asyncio.WriteTransport

    @classmethod
    async def of(cls, file: IO[Text], coding: Coding) -> Writer[Text]:
        """A writer to what is piped, which closes it in the end."""
        loop = asyncio.get_running_loop()
        transport, writer = await loop.connect_write_pipe(lambda: cls(coding), file)
        writer._transport = transport
        return writer

    def write(self, data: Text) -> None:
        """Writes without waiting; :meth:`drain` waits until the process has read most of it."""
        self._check()
        self._transport.write(self._coding.bytes_of(data))

    async def drain(self) -> None:
        """Waits until more may be written. :class:`BrokenPipeError` if nobody reads any more."""
        self._check()
        await self._open.wait()
        self._check()

    def close(self) -> None:
        """Lets the process see the end, after what was written."""
        self._transport.close()

    def is_closing(self) -> bool:
        """Whether it was closed, or nobody reads any more."""
        return self._transport.is_closing()

    async def wait_closed(self) -> None:
        """Waits until it is closed and everything is written, or nobody reads any more."""
        await self._closed.wait()

    def _check(self) -> None:
        if self._transport.is_closing():
            raise BrokenPipeError("standard input is closed, or nobody reads it any more")

    def _abort(self) -> None:
        if not self._closed.is_set():
            self._transport.abort()

    # What the event loop calls.

    def pause_writing(self) -> None:
        self._open.clear()

    def resume_writing(self) -> None:
        self._open.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._open.set()
        self._closed.set()
