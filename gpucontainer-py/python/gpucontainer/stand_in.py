"""Executable files that run a program of an image, and the process that becomes one.

Software that starts workers often takes the path of a Python for them. A stand-in is such a path::

    from gpucontainer import stand_in

    stand_in.write("worker-python", "python:3.13", ["python3"], "--memory", "2G")
    multiprocessing.get_context("spawn").set_executable("worker-python")

Each process of multiprocessing is in a sandbox of its own then, which the start method ``forkserver`` cannot be had for.

What it may use and what it sees of its caller is said with the options of ``python -m gpucontainer stand-in``.
"""

from __future__ import annotations

import os
import select
import shlex
import signal
import stat
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import errors, surroundings
from .becoming import enter
from .image import pull_if_absent

#: The second line of every stand-in, by which one is known that may be replaced.
_MARK = "# A program of an image, written by gpucontainer."

#: How multiprocessing begins the server of its start method `forkserver`.
_FORK_SERVER = "from multiprocessing.forkserver import main"

#: Neither the caller's variables nor its working directory are where this half looks for modules.
_BEGIN = (
    "import sys; sys.path.append(sys.argv[1]); from gpucontainer.command_line import stand_in_main; stand_in_main()"
)


def write(path: str | os.PathLike[str], image: str | os.PathLike[str], command: Sequence[str], *options: str) -> Path:
    """Writes an executable file that runs ``command`` of an image, with the arguments that it is given.

    It needs this Python and this package where they are now. Paths in ``options`` are taken from the working directory of
    now.

    :param path: a stand-in that is there already is replaced at once, for those that run nothing changes.
    :param image: a reference, or a directory.
    :param options: as the command line has them, such as ``"--gpus", "1"``; see ``python -m gpucontainer exec --help``.
    :return: its absolute path.
    :raises gpucontainer.Error: if an option cannot be understood, or something else is at ``path``.
    """
    from . import command_line

    if isinstance(command, str) or not command:
        raise errors.InvalidArgumentError("the command is a list of words, and not empty")
    reference = image if isinstance(image, str) else os.path.abspath(image)
    return write_script(Path(path), command_line.stand_in_words(path, reference, command, options, os.getcwd()))


def write_script(path: Path, words: Sequence[str]) -> Path:
    """Writes the file for words of the command line that were looked at."""
    path = path.absolute()
    if path.exists() or path.is_symlink():
        if not path.is_file() or _MARK not in path.read_text(errors="replace")[:200]:
            raise errors.AlreadyExistsError(f"{path} is there already and is no stand-in", 17, path)
    package = str(Path(__file__).absolute().parents[1])
    # The words, of which there are so many, and then what the stand-in is given.
    begin = shlex.join(["exec", sys.executable, "-IS", "-c", _BEGIN, package, os.getcwd(), str(len(words))])
    lines = (" ".join(shlex.quote(word) for word in pair) for pair in _by_options(words))
    text = " \\\n    ".join([f"#!/bin/sh\n{_MARK}\n{begin}", *lines, '"$@"\n'])
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "w") as file:
            file.write(text)
            readable = stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH
            os.fchmod(file.fileno(), (stat.S_IWUSR | readable) & ~current_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def _by_options(words: Sequence[str]) -> list[list[str]]:
    """The words, an option with what belongs to it at a time, for people to read."""
    groups: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--") and "--" not in groups[-1]:
            groups.append([])
        groups[-1].append(word)
    return groups


def current_umask() -> int:
    """The mask of this process, which `os.umask` tells by a change alone."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1], 8) for line in status if line.startswith("Umask:"))


def inherited() -> list[int]:
    """The descriptors beside the three streams that whoever started this process wants to pass on."""
    numbers = []
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        try:
            if number > 2 and os.get_inheritable(number):
                numbers.append(number)
        except OSError:
            # It was that of the listing itself.
            continue
    return sorted(numbers)


def become(image: str | Path, options: dict[str, Any]) -> NoReturn:
    """Turns this process into the sandbox that the arguments of :class:`~gpucontainer.Sandbox` describe.

    The command has this process' streams, the descriptors that it inherited and, where the kernel allows that, its number.
    """
    if any(word.startswith(_FORK_SERVER) for word in options["command"] or ()):
        # `Process.kill()` would reach whatever process has that number outside.
        why = "its forkserver would report numbers of processes that are other processes' outside; use the method spawn"
        raise errors.InvalidArgumentError(f"multiprocessing: {why}")
    # Here Ctrl-C ends it; later that is the command's.
    pull_if_absent(image, options["store"])
    passed = inherited()
    if surroundings.ends_with_parent():
        _end_with_parent()
    enter(image, pass_fds=passed, application_pid=os.getpid() if _may_choose_pid() else None, **options)


def _end_with_parent() -> None:
    """Has a small process wait for the end of this process' parent, and end this one then."""
    try:
        parent, own = os.pidfd_open(os.getppid()), os.pidfd_open(os.getpid())
    except OSError:
        # The parent is gone, and this process somebody else's already.
        return
    if os.fork() == 0:
        try:
            # What comes to the process group is not for this one, and nobody waits for its streams.
            os.setsid()
            last = max(parent, own)
            for low, high in ((0, min(parent, own)), (min(parent, own) + 1, last), (last + 1, _highest())):
                os.closerange(low, high)
            poll = select.poll()
            poll.register(parent, select.POLLIN)
            poll.register(own, select.POLLIN)
            if parent in dict(poll.poll()):
                signal.pidfd_send_signal(own, signal.SIGTERM)
                poll.unregister(parent)
                if not poll.poll(_GRACE * 1000):
                    signal.pidfd_send_signal(own, signal.SIGKILL)
        finally:
            os._exit(0)
    os.close(parent)
    os.close(own)


#: Seconds that a program has to end by itself when nobody is there for it any more.
_GRACE = 10


def _highest() -> int:
    return max((int(name) for name in os.listdir("/proc/self/fd")), default=2) + 2


def _may_choose_pid() -> bool:
    return os.getpid() > 1 and os.access("/proc/sys/kernel/ns_last_pid", os.W_OK)
