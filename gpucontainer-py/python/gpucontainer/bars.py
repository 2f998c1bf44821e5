"""Progress as bars of rich or of tqdm, if one of them is installed: one for each part, all gone at the end."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ._native import Progress


# As many letters of a name as leave a bar beside them on a line of eighty.
NAMED = 32


class Bars(Protocol):
    """What draws."""

    def show(self, progress: Progress) -> None:
        """Shows how far a part is."""

    def close(self) -> None:
        """Takes away what was shown."""


def installed(what: str, notebook: bool) -> Bars | None:
    """Bars of rich, else of tqdm; nothing without both, or where they cannot draw."""
    for kind in (_Rich, _Tqdm):
        try:
            if notebook:
                # Both draw with this there, and complain if it is missing.
                importlib.import_module("ipywidgets")
            return kind(_shortened(what), notebook)
        # They do what they like where a part of theirs is missing, as in a notebook without widgets.
        except Exception:
            continue
    return None


def _shortened(what: str) -> str:
    """Its begin says what is done, and its end with which image."""
    if len(what) <= NAMED:
        return what
    begin = NAMED // 3
    return f"{what[:begin]}...{what[begin + 3 - NAMED :]}"


def _named(progress: Progress) -> str:
    """A part in few letters: a digest's first twelve digits, as everybody shows them."""
    _, _, digits = progress.item.rpartition("sha256:")
    return f"{digits[:12]} {progress.phase}"


class _Rich:
    def __init__(self, what: str, notebook: bool) -> None:
        console = importlib.import_module("rich.console")
        bars = importlib.import_module("rich.progress")
        table = importlib.import_module("rich.table")
        # What is too wide otherwise takes the room of the bars.
        text = table.Column(ratio=1, no_wrap=True, overflow="ellipsis")
        columns = (
            bars.TextColumn("{task.description}", markup=False, table_column=text),
            bars.BarColumn(bar_width=None, table_column=table.Column(ratio=1, min_width=10)),
            bars.DownloadColumn(binary_units=True),
            bars.TransferSpeedColumn(),
        )
        # It is drawn when there is news, and by nobody else: rich would have a thread for that.
        options = {"transient": True, "expand": True, "auto_refresh": False}
        self._bars: Any = bars.Progress(*columns, console=console.Console(stderr=not notebook), **options)
        self._bars.start()
        self._what = self._bars.add_task(what, total=None)
        self._parts: dict[str, Any] = {}

    def show(self, progress: Progress) -> None:
        part = self._parts.get(progress.item)
        if part is None:
            part = self._parts[progress.item] = self._bars.add_task(_named(progress), total=progress.total)
        self._bars.update(part, description=_named(progress), completed=progress.bytes, total=progress.total)
        tasks = [task for task in self._bars.tasks if task.id != self._what]
        whole = None if any(task.total is None for task in tasks) else sum(task.total for task in tasks)
        self._bars.update(self._what, completed=sum(task.completed for task in tasks), total=whole, refresh=True)

    def close(self) -> None:
        self._bars.stop()


class _Tqdm:
    def __init__(self, what: str, notebook: bool) -> None:
        bar: Any = importlib.import_module("tqdm.notebook" if notebook else "tqdm").tqdm
        # Or tqdm would have a thread that looks after bars which nobody moves.
        self._bar: Any = type(bar.__name__, (bar,), {"monitor_interval": 0})
        self._parts: dict[str, Any] = {}
        self._whole: Any = self._made(what, None)

    def _made(self, name: str, total: int | None) -> Any:
        return self._bar(
            desc=name,
            total=total,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            leave=False,
            file=sys.stderr,
            mininterval=0,
        )

    def show(self, progress: Progress) -> None:
        part = self._parts.get(progress.item)
        if part is None:
            part = self._parts[progress.item] = self._made(_named(progress), progress.total)
        part.total, part.n = progress.total, progress.bytes
        part.set_description_str(_named(progress), refresh=False)
        part.refresh()
        parts = self._parts.values()
        self._whole.total = None if any(one.total is None for one in parts) else sum(one.total for one in parts)
        self._whole.n = sum(one.n for one in parts)
        self._whole.refresh()

    def close(self) -> None:
        for bar in (*self._parts.values(), self._whole):
            bar.close()
