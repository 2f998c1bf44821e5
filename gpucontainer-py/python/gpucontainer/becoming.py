"""The calling process becomes a sandbox."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from . import _native
from ._native import Image
from .options import SandboxOptions, _options, known

if TYPE_CHECKING:
    from typing_extensions import Unpack


def enter(
    image: str | Image | os.PathLike[str], command: Sequence[str] | None = None, **options: Unpack[SandboxOptions]
) -> NoReturn:
    """Turns the calling process into a sandbox, as :func:`os.execv` turns it into a program.

    The arguments are those of :class:`Sandbox`. It returns only by raising, if the start fails; then this process is as
    it was. Otherwise the process stands for the sandbox until that ends:

    - Every signal that can be caught and comes to this process reaches the application once; Ctrl-C its whole process
      group. Those that are ignored here (``SIG_IGN``) are ignored.
    - An application that is stopped stops this process, and ``SIGCONT`` lets both go on.
    - When the application ends, everything is given back and this process ends as it did, with its exit code or by the
      same signal. No ``atexit`` handler, ``finally`` or destructor is run; ``sys.stdout`` and ``sys.stderr`` are flushed
      before. ``SIGKILL`` to this process kills everything inside.

    This process must have one thread; otherwise :class:`errors.UnsupportedError` is raised. ``PIPE`` and ``terminal``
    are refused, since nobody would be at the other end. Handlers of Python for signals do not run during the start, so an
    image that may have to be pulled first is better pulled before.
    """
    known(options)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    _native.enter(image, _options({"command": command, **options}))
