"""Progress of long work, shown by itself: a line in a terminal or below the cell of a notebook, which goes again."""

from __future__ import annotations

import html
import shutil
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .tables import size

if TYPE_CHECKING:
    from ._native import Progress

#: Seconds between two changes of what is shown, at least.
_PAUSE = 0.1


class Display:
    """Shows how far some work is; any number of threads may report to it."""

    def __init__(self, what: str, show: Callable[[str], None]) -> None:
        self._what = what
        self._show = show
        self._lock = threading.Lock()
        self._items: dict[str, Progress] = {}
        self._next = 0.0
        self._shown = False

    def __call__(self, progress: Progress) -> None:
        with self._lock:
            self._items[progress.item] = progress
            now = time.monotonic()
            if now < self._next:
                return
            self._next = now + _PAUSE
            self._draw(self._line())

    def close(self) -> None:
        """Takes away what was shown."""
        with self._lock:
            if self._shown:
                self._draw("")

    def _draw(self, text: str) -> None:
        self._shown = True
        try:
            self._show(text)
        except (OSError, ValueError):
            # The terminal is gone; the work goes on.
            self._next = float("inf")

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
    show = _notebook() or _terminal()
    return None if show is None else Display(what, show)


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


def _notebook() -> Callable[[str], None] | None:
    ipython = _kernel()
    if ipython is None:
        return None
    handle = ipython.display.display(ipython.display.HTML(""), display_id=True)

    def show(text: str) -> None:
        handle.update(ipython.display.HTML(f"<pre>{html.escape(text)}</pre>" if text else ""))

    return show
