"""What lists look like in a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._native import Image
    from .ports import Port
    from .sandbox import Sandbox

#: Of the drawing of a timeline, in pixels.
_ROW, _NAMES, _BARS, _TIMES = 18, 180, 420, 90


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of HTML; the cells are text, whatever is in them."""
    return f"<table>{_row('th', heads)}{''.join(_row('td', row) for row in rows)}</table>"


def _row(tag: str, cells: Sequence[object]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"


class Text(str):
    """A text of columns, which keep their places in a notebook, too."""

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self)}</pre>"


class Ports(list["Port"]):
    """Published ports; a table in a notebook."""

    def _repr_html_(self) -> str:
        heads = ("inside", "on the host", "protocol", "mode", "open", "accepted", "refused", "in", "out", "last error")
        rows = (
            (
                _span(port.container_port, port.count),
                ", ".join(f"{_bracketed(host)}:{_span(port.host_port, port.count)}" for host in port.hosts),
                port.protocol,
                port.mode,
                port.open,
                port.accepted,
                port.refused,
                size(port.bytes_in),
                size(port.bytes_out),
                port.last_error or "",
            )
            for port in self
        )
        return table(heads, rows)


class Timeline(list["tuple[str, float]"]):
    """The phases of a start and how many seconds each took; bars in a notebook."""

    def _repr_svg_(self) -> str:
        """Each phase as a bar that begins where the one before ended."""
        total = sum(seconds for _, seconds in self)
        scale = _BARS / total if total > 0 else 0.0
        width, height = _NAMES + _BARS + _TIMES, _ROW * (len(self) + 1)
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'font-family="sans-serif" font-size="12" fill="currentColor">'
        ]
        begin = 0.0
        for number, (name, seconds) in enumerate([*self, ("all", total)]):
            at = 0.0 if number == len(self) else begin
            top, left, length = number * _ROW, _NAMES + at * scale, max(seconds * scale, 1.0)
            colour = "#76b900" if number < len(self) else "#888888"
            parts.append(
                f'<text x="{_NAMES - 6}" y="{top + 13}" text-anchor="end">{html.escape(name)}</text>'
                f'<rect x="{left:.2f}" y="{top + 3}" width="{length:.2f}" height="{_ROW - 6}" fill="{colour}"/>'
                f'<text x="{left + length + 4:.2f}" y="{top + 13}">{seconds * 1e3:.2f} ms</text>'
            )
            begin += seconds
        return "".join(parts) + "</svg>"

    def _repr_html_(self) -> str:
        return self._repr_svg_()


def images(found: Iterable[Image]) -> str:
    """Images, as :class:`ImageStore` shows them."""
    rows = ((image.reference, image.id, image.config.architecture, image.config.created or "") for image in found)
    return table(("reference", "id", "architecture", "created"), rows)


def sandbox(one: Sandbox[Any]) -> str:
    """A sandbox, with what it runs, its ports and its GPUs."""
    from .errors import ClosedError

    try:
        status, ports, gpus = one.poll(), Ports(one.ports), one.gpus
    except ClosedError:
        return table(("sandbox", "state"), [(one.name, _state(one.status) if one.status is not None else "closed")])
    command = "the image's" if one.args is None else " ".join(one.args)
    facts = table(
        ("sandbox", "state", "process", "command", "GPUs"),
        [(one.name, _state(status), one.pid, command, ", ".join(gpus))],
    )
    return facts + (ports._repr_html_() if ports else "")


def _state(status: Any) -> str:
    if status is None:
        return "running"
    how = f"exit code {status.code}" if status.code is not None else f"signal {status.signal}"
    return how + (", at the memory limit" if status.oom_killed else "")


def size(count: int) -> str:
    """Bytes for people."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _span(first: int, count: int) -> str:
    return str(first) if count == 1 else f"{first}-{first + count - 1}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
