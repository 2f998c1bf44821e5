"""What tests that start sandboxes need."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest

import gpucontainer
from gpucontainer import Sandbox

BUSYBOX = shutil.which("busybox")
IS_ROOT = os.geteuid() == 0

#: Marks of the modules in which sandboxes start.
NEEDED = [
    pytest.mark.skipif(BUSYBOX is None, reason="busybox is not installed"),
    pytest.mark.skipif(
        not IS_ROOT and not gpucontainer.Host.probe().has("user-namespaces"), reason="no user namespaces"
    ),
]

#: Starts a shell with a script; the fixture ``start``.
Start = Callable[..., Sandbox[Any]]
