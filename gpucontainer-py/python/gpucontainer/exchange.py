"""What goes into a process and comes out of it, at once, with a deadline after which it can go on."""

from __future__ import annotations

import os
import selectors
import time
from typing import IO, Any, cast

#: What a pipe holds.
_CHUNK = 65536


class Exchange:
    """Feeds standard input and collects what is written to the others, until all are at their end.

    It can be left at a deadline and gone on with; nothing is lost.
    """

    def __init__(self, stdin: IO[Any] | None, outputs: list[IO[Any]], input: memoryview) -> None:
        self._stdin = stdin
        self._left = input
        self._parts: dict[IO[Any], list[bytes]] = {stream: [] for stream in outputs}
        self._open = list(outputs)

    def run(self, end: float | None) -> bool:
        """Goes on until all is done, or until the monotonic clock says ``end``; whether all is done."""
        stdin = self._stdin
        with selectors.DefaultSelector() as selector:
            if stdin is not None:
                os.set_blocking(stdin.fileno(), False)
                selector.register(stdin, selectors.EVENT_WRITE)
            for stream in self._open:
                selector.register(stream, selectors.EVENT_READ)
            try:
                return self._turn(selector, end)
            finally:
                if self._stdin is not None and not self._stdin.closed:
                    os.set_blocking(self._stdin.fileno(), True)

    def _turn(self, selector: selectors.BaseSelector, end: float | None) -> bool:
        while selector.get_map():
            left = None if end is None else end - time.monotonic()
            ready = selector.select(None if left is None else max(0.0, left))
            if not ready and end is not None and time.monotonic() >= end:
                return False
            for key, _ in ready:
                stream = cast("IO[Any]", key.fileobj)
                if stream is self._stdin:
                    self._write(selector, stream)
                    continue
                data = _read(stream)
                if data:
                    self._parts[stream].append(data)
                else:
                    selector.unregister(stream)
                    self._open.remove(stream)
                    stream.close()
        return True

    def _write(self, selector: selectors.BaseSelector, stdin: IO[Any]) -> None:
        try:
            self._left = self._left[os.write(stdin.fileno(), self._left[:_CHUNK]) if self._left else 0 :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            # Nobody wants the rest.
            self._left = self._left[:0]
        if not self._left:
            selector.unregister(stdin)
            self._stdin = None
            close_writing(stdin)

    def collected(self, stream: IO[Any] | None) -> bytes:
        """What has come of a stream so far."""
        return b"".join(self._parts.get(stream, [])) if stream is not None else b""


def _read(stream: IO[Any]) -> bytes:
    """What is there: what somebody read before and did not take comes first."""
    below: Any = getattr(stream, "buffer", stream)
    return cast("bytes", below.read1(_CHUNK))


def close_writing(stream: IO[Any]) -> None:
    """Closes the writing end of a pipe, whether or not anybody read what was buffered."""
    try:
        stream.close()
    except BrokenPipeError:
        pass
