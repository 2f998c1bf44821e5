"""Debian's registry on a port of its own; as a program, for the time that another one runs.

python3 registry.py DIRECTORY COMMAND...

The command finds it as ``GPUC_TEST_REGISTRY``, ``127.0.0.1:PORT``.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAM = "docker-registry"

CONFIGURATION = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {storage}}}}}
http: {{addr: "{address}"}}
"""


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[str]:
    """Its address, while it serves what it keeps in the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    # A port that was free may be taken a moment later.
    for _ in range(20):
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        configuration = directory / "registry.yml"
        configuration.write_text(CONFIGURATION.format(storage=directory / "storage", address=address))
        with (directory / "registry.log").open("wb") as log:
            process = subprocess.Popen(
                [PROGRAM, "serve", configuration],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "OTEL_TRACES_EXPORTER": "none"},
            )
        try:
            if _answers(address, process):
                yield address
                return
        finally:
            process.kill()
            process.wait()
    raise RuntimeError((directory / "registry.log").read_text())


def _answers(address: str, process: subprocess.Popen[bytes]) -> bool:
    host, port = address.split(":")
    end = time.monotonic() + 30
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return True
        time.sleep(0.02)
    return False


def main() -> int:
    with serving(Path(sys.argv[1])) as address:
        return subprocess.run(sys.argv[2:], env={**os.environ, "GPUC_TEST_REGISTRY": address}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
