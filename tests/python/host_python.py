"""An image whose Python is that of the tests: libraries of the host, and mounts that show the rest of its files."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import gpucontainer

ROOT = Path(__file__).parents[2]

#: The interpreter that runs the tests, as it is called inside too.
PYTHON = sys.executable

#: What merged distributions have as links, and others as directories.
#: Packages of the tests with modules in other languages, which need libraries of the host.
_NATIVE = ("ray", "zmq", "psutil", "tornado")

_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


def build(store: gpucontainer.ImageStore, reference: str = "python:test") -> gpucontainer.Image:
    """An image with a shell and the libraries that Python wants, which can be written to; :func:`mounts` is the rest."""
    builder = store.build().directory("/usr/lib", 0o755).directory("/tmp", 0o1777).directory("/etc", 0o755)
    for name in _LINKS:
        if os.path.islink(f"/{name}"):
            builder = builder.symlink(os.readlink(f"/{name}"), f"/{name}")
    programs = [
        path for path in map(Path, ("/bin/sh", "/bin/bash", "/bin/cat", "/bin/sleep", "/bin/stty")) if path.exists()
    ]
    interpreter = Path(PYTHON).resolve()
    programs += [path for path in _links(Path(PYTHON)) if path.is_relative_to("/usr")]
    modules = sorted(Path(sysconfig.get_config_var("DESTSHARED")).glob("*.so"))
    for name in _NATIVE:
        found = importlib.util.find_spec(name)
        if found is not None and found.origin is not None:
            modules += sorted(Path(found.origin).parent.rglob("*.so"))
    for path in sorted({*programs, *_libraries([*programs, interpreter, *modules])}):
        builder = builder.copy(path, _merged(path), follow_links=True)
    passwd = f"root:x:0:0:root:/root:/bin/sh\nself:x:{os.getuid()}:{os.getgid()}::/:/bin/sh\n"
    return builder.file("/etc/passwd", passwd.encode()).commit(reference)


def mounts() -> list[str]:
    """The directories of the host that the Python of the tests needs beside the image."""
    wanted = {ROOT, *(Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix))}
    wanted |= {Path(path).resolve() for path in sys.path if path.endswith("-packages")}
    wanted |= {Path(sysconfig.get_path("stdlib")).resolve(), Path(sysconfig.get_config_var("DESTSHARED")).resolve()}
    # The image has a /usr of its own.
    kept = [path for path in sorted(wanted) if path.is_dir() and path != Path("/usr")]
    return [str(path) for path in kept if not any(other != path and other in path.parents for other in kept)]


def options() -> list[str]:
    """The same, read-only, as options of the command line."""
    return [word for path in mounts() for word in ("--mount", f"{path}:{path}:ro")]


def _libraries(files: Iterable[Path]) -> set[Path]:
    """What the loader loads for these, by the names that it looks for."""
    said = subprocess.run(["ldd", *files], capture_output=True, text=True).stdout
    return {Path(found) for found in re.findall(r"(/\S+) \(0x", said) if not _is_shown(Path(found))}


def _links(path: Path) -> list[Path]:
    """A path, and all that it leads to by links."""
    found = [path]
    while found[-1].is_symlink():
        found.append(found[-1].parent / found[-1].readlink())
    return found


def _is_shown(path: Path) -> bool:
    return any(path.is_relative_to(directory) for directory in mounts())


def _merged(path: Path) -> str:
    first = path.parts[1]
    return f"/usr{path}" if first in _LINKS and os.path.islink(f"/{first}") else str(path)
