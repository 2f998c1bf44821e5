"""Progress of long work, shown by itself in a terminal or below the cell of a notebook, and gone at its end.

Bars are those of rich or of tqdm, if one of them is installed; else there is a line.
"""

from __future__ import annotations

import functools
import html
import logging
import shutil
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import bars
from .tables import size

if TYPE_CHECKING:
    from ._native import Progress

#: Seconds between two changes of what is shown, at least.
_PAUSE = 0.1


class Display:
    """Shows how far some work is; any number of threads may report to it."""

    def __init__(self, shown: bars.Bars) -> None:
        self._shown: bars.Bars | None = shown
        self._lock = threading.Lock()
        self._news: dict[str, Progress] = {}
        self._next = 0.0

    def __call__(self, progress: Progress) -> None:
        with self._lock:
            self._news[progress.item] = progress
            now = time.monotonic()
            if now < self._next:
                return
            self._next = now + _PAUSE
            self._draw()

    def close(self) -> None:
        """Takes away what was shown."""
        with self._lock:
            self._draw()
            shown, self._shown = self._shown, None
            if shown is not None:
                _tried(shown.close)

    def _draw(self) -> None:
        news, self._news = self._news, {}
        for progress in news.values():
            # When the terminal is gone, the work goes on.
            if self._shown is not None and not _tried(functools.partial(self._shown.show, progress)):
                self._shown = None


def _tried(draw: Callable[[], object]) -> bool:
    """Whether that could be drawn. Whatever a terminal, a notebook or a library for bars raises, it ends no work."""
    try:
        draw()
    except Exception as error:
        logging.getLogger("gpucontainer").warning("progress is shown no more: %s: %s", type(error).__name__, error)
        return False
    return True


class Line:
    """All of the work in one line."""

    def __init__(self, what: str, write: Callable[[str], None]) -> None:
        self._what = what
        self._write = write
        self._items: dict[str, Progress] = {}

    def show(self, progress: Progress) -> None:
        self._items[progress.item] = progress
        self._write(self._line())

    def close(self) -> None:
        if self._items:
            self._write("")

    def _line(self) -> str:
        items = self._items.values()
        done = sum(item.phase in ("done", "present") for item in items)
        there = sum(item.bytes for item in items)
        totals = [item.total for item in items]
        known = [total for total in totals if total is not None]
        whole = f" of {size(sum(known))}" if len(known) == len(totals) else ""
        return f"{self._what}: {done} of {len(items)} parts, {size(there)}{whole}"


def choose(progress: Any, what: str) -> Any:
    """Whom to report to: a callable of the caller's, what is shown by itself, or nobody."""
    if callable(progress):
        return progress
    if progress is None or progress is False:
        return None
    if progress is not True:
        raise TypeError(f"progress is a callable, True, False or None, not {type(progress).__name__}")
    kernel = _kernel()
    terminal = None if kernel is not None else _terminal()
    if kernel is None and terminal is None:
        return None
    write = terminal or _below_the_cell(kernel)
    return Display(bars.installed(what, kernel is not None) or Line(what, write))


def is_watched() -> bool:
    """Whether somebody looks at a terminal or a notebook."""
    return _kernel() is not None or _terminal() is not None


def finish(reporter: object) -> None:
    """The work is over."""
    if isinstance(reporter, Display):
        reporter.close()


def _terminal() -> Callable[[str], None] | None:
    stream = sys.stderr
    try:
        if stream is None or not stream.isatty():
            return None
    except ValueError:
        # It was closed.
        return None

    def show(text: str) -> None:
        # What is longer than the line would stay behind.
        width = shutil.get_terminal_size().columns - 1
        stream.write(f"\r{text[:width]}\x1b[K")
        stream.flush()

    return show


def _kernel() -> Any:
    """The package IPython in a notebook."""
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return ipython if shell is not None and hasattr(shell, "kernel") else None


def _below_the_cell(ipython: Any) -> Callable[[str], None]:
    handle: Any = None

    def show(text: str) -> None:
        nonlocal handle
        if handle is None:
            handle = ipython.display.display(ipython.display.HTML(""), display_id=True)
        handle.update(ipython.display.HTML(f"<pre>{html.escape(text)}</pre>" if text else ""))

    return show
