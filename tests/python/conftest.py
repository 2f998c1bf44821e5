"""An image with a shell, and sandboxes of it that leave nothing open."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import Any

import pytest
from starting import BUSYBOX, Start

import gpucontainer
from gpucontainer import DEVNULL, PIPE, Sandbox


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> gpucontainer.Image:
    store = gpucontainer.ImageStore(tmp_path_factory.mktemp("store"))
    assert BUSYBOX is not None
    builder = store.build().copy(BUSYBOX, "/bin/busybox", follow_links=True)
    for name in ("sh", "cat", "echo", "sleep", "id", "nc", "pwd", "tty", "dd"):
        builder = builder.symlink("busybox", f"/bin/{name}")
    passwd = b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/srv:/bin/sh\n"
    return (
        builder.directory("/tmp", 0o1777)
        .directory("/srv", 0o755)
        .file("/etc/passwd", passwd)
        .command(["echo", "from the image"])
        .commit("test:1")
    )


@pytest.fixture
def start(image: gpucontainer.Image) -> Iterator[Start]:
    """Starts a shell, and sees that nothing is left open when the test is over."""
    gc.collect()
    before = sorted(os.listdir("/proc/self/fd"))
    started: list[Sandbox[Any]] = []

    def shell(script: str, **options: Any) -> Sandbox[Any]:
        options = {"stdin": DEVNULL, "stdout": PIPE, "stderr": PIPE, **options}
        sandbox = Sandbox(image, ["sh", "-c", script], **options)
        started.append(sandbox)
        return sandbox

    yield shell
    for sandbox in started:
        sandbox.close()
    gc.collect()
    assert sorted(os.listdir("/proc/self/fd")) == before
