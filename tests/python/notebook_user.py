"""A notebook that imports an image: `python notebook_user.py DIRECTORY [PLACE…]`, where the places are for its imports.

Prints a line of JSON for each thing that the kernel has to show: its kind, and what it is.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import jupyter_client

PATIENCE = 60.0

CELL = """
import sys
sys.path += {places!r}
import gpucontainer
gpucontainer.ImageStore({store!r}).import_({layout!r}).reference
"""


def show(message: dict[str, Any]) -> None:
    print(json.dumps([message["msg_type"], message["content"]]), flush=True)


def main(directory: Path, places: list[str]) -> None:
    os.environ.update(
        JUPYTER_DATA_DIR=str(directory),
        JUPYTER_RUNTIME_DIR=str(directory / "runtime"),
        JUPYTER_CONFIG_DIR=str(directory / "configuration"),
        IPYTHONDIR=str(directory / "ipython"),
    )
    kernel = jupyter_client.KernelManager(kernel_name="python3")
    kernel.start_kernel()
    client = kernel.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=PATIENCE)
        cell = CELL.format(places=places, store=str(directory / "store"), layout=str(directory / "layout"))
        reply = client.execute_interactive(cell, timeout=PATIENCE, output_hook=show)
        assert reply["content"]["status"] == "ok", reply
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
