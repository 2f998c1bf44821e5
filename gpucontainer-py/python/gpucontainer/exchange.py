"""What goes into a process and comes out of it, at once, with a deadline after which it can go on."""

from __future__ import annotations

import fcntl
import io
import os
import selectors
import time
from typing import IO, Any, cast

#: What a pipe is made to hold for an exchange, where the user may have so much; a pipe has 64 KiB otherwise.
_CHUNK = 1 << 20


class Exchange:
    """Feeds standard input and collects what is written to the others, until all are at their end.

    It can be left at a deadline and gone on with; nothing is lost.
    """

    def __init__(self, stdin: IO[Any] | None, outputs: list[IO[Any]], input: memoryview) -> None:
        self._stdin = stdin
        self._left = input
        # What they hold in the end is given away without a copy.
        self._collected = {stream: io.BytesIO() for stream in outputs}
        self._open = list(outputs)
        for stream in (*outputs, *([] if stdin is None else [stdin])):
            _widen(stream)

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
                    self._collected[stream].write(data)
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
        collected = None if stream is None else self._collected.get(stream)
        return b"" if collected is None else collected.getvalue()


def _widen(stream: IO[Any]) -> None:
    """Lets a pipe hold more, so that its two ends need not take turns so often."""
    try:
        fcntl.fcntl(stream.fileno(), fcntl.F_SETPIPE_SZ, _CHUNK)
    except OSError:
        # It is something else, the user has many such pipes, or the host's limit is lower.
        pass


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
