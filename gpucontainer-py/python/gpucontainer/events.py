"""What the library has to say beside results and exceptions, for :mod:`logging` or a callable."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from . import _native

if TYPE_CHECKING:
    import logging

#: The numbers that :mod:`logging` has for the levels.
_NUMBERS = {"error": 40, "warning": 30, "info": 20, "debug": 10, "trace": 5}


def log_to(
    target: logging.Logger | Callable[[str, str], object] | None,
    level: Literal["error", "warning", "info", "debug", "trace"] = "info",
) -> None:
    """Gives events of the library up to a level to a logger, or to a callable, in the place of the one before.

    Nobody gets them at first. No thread is made for that: it is called by the thread to which an event happens, which may be
    the library's own that relays ports. What it raises is unraisable (:func:`sys.unraisablehook`).

    :param target: a logger; or what takes the name of the level and a line of text; None is nobody.
    :param level: ``"error"``, ``"warning"``, ``"info"``, ``"debug"`` or ``"trace"``, which is logged with the number 5.
    """
    if level not in _NUMBERS:
        raise ValueError(f"level is one of {', '.join(_NUMBERS)}, not {level!r}")
    if target is None or callable(target):
        _native.listen(level, target)
        return
    if not hasattr(target, "log"):
        raise TypeError(f"target is a logger, a callable or None, not {type(target).__name__}")
    logger = target
    _native.listen(level, lambda name, text: logger.log(_NUMBERS[name], "%s", text))
