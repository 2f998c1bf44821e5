"""What a stand-in shows of its caller: directories under the same paths, and variables."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .limits import Mount

#: Directories that every image has for itself. A path below one of them names something of the image.
_OF_THE_IMAGE = tuple("/bin /boot /dev /etc /lib /lib32 /lib64 /libx32 /proc /run /sbin /sys /usr".split())

#: Variables that say where files of the caller's system are, or which of its GPUs; inside, the image and the grant do.
_OF_THE_CALLER = frozenset(
    (
        *("CUDA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "NVIDIA_VISIBLE_DEVICES"),
        *("GPUCONTAINER_DRIVER_ROOT", "GPUCONTAINER_OPTIONS"),
        *("LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID"),
        *("LD_LIBRARY_PATH", "LD_PRELOAD", "PATH", "PYTHONEXECUTABLE", "PYTHONHOME", "__PYVENV_LAUNCHER__"),
    )
)


#: Variables with the number of the caller's parent, whose end is the program's: Jupyter's.
_OF_THE_PARENT = "JPY_PARENT_PID"


def directories(
    *,
    cwd: bool = True,
    home: bool = True,
    temporary: bool = True,
    arguments: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> list[Mount]:
    """The caller's directories that a program needs to find what it is told about, under the paths that they have.

    :param cwd: the working directory.
    :param home: the home directory.
    :param temporary: where files for a moment are, and the sockets of ``multiprocessing`` and of Ray.
    :param arguments: those that are absolute paths of directories, or of files, whose directories are shown. What is
        below ``/usr``, ``/etc`` and the like is taken for the image's.
    :param environ: the caller's variables, if not those of this process.
    """
    environ = os.environ if environ is None else environ
    wanted: list[str] = []
    if cwd:
        wanted.append(os.getcwd())
    if home:
        wanted.append(environ.get("HOME", ""))
    if temporary:
        wanted.extend((environ.get("TMPDIR", ""), tempfile.gettempdir()))
    for argument in arguments:
        if argument.startswith("/") and os.path.exists(argument) and not _is_below(argument, _OF_THE_IMAGE):
            wanted.append(argument if os.path.isdir(argument) else os.path.dirname(argument))
    paths = [os.path.normpath(path) for path in wanted if path.startswith("/") and os.path.isdir(path)]
    # The root cannot be covered, and what is below a directory that is shown is there already.
    unique = sorted({path for path in paths if path not in ("/", "//")}, key=lambda path: (path.count("/"), path))
    shown: list[str] = []
    for path in unique:
        if not _is_below(path, shown):
            shown.append(path)
    return [Mount.bind(path, path) for path in shown]


def variables(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The caller's variables but for those that say where files of its own system are, or which of its GPUs."""
    environ = os.environ if environ is None else environ
    shown = {name: value for name, value in environ.items() if name not in _OF_THE_CALLER and name}
    if _OF_THE_PARENT in shown:
        # The parent of every program inside. Who is told this number has nobody to look after.
        shown[_OF_THE_PARENT] = "1"
    return shown


def ends_with_parent() -> bool:
    """Whether the program would look by itself whether the parent of this process lives, which it cannot do inside."""
    return os.environ.get(_OF_THE_PARENT) == str(os.getppid())


def without_covered(mounts: Iterable[Mount], chosen: Sequence[Mount]) -> list[Mount]:
    """Those of ``mounts`` in whose place nothing else was chosen."""
    targets = {str(Path(mount.target)) for mount in chosen}
    return [mount for mount in mounts if str(Path(mount.target)) not in targets]


def _is_below(path: str, directories: Iterable[str]) -> bool:
    return any(path == directory or path.startswith(directory + "/") for directory in directories)
