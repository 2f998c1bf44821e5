"""A program that drives a Jupyter kernel: `python kernel_user.py DIRECTORY [left]`; the directory has its specification."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import jupyter_client

PATIENCE = 60.0


def compute(client: Any, code: str) -> tuple[str, str]:
    """The status of code, and what it printed."""
    printed: list[str] = []

    def hook(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream":
            printed.append(message["content"]["text"])

    reply = client.execute_interactive(code, timeout=PATIENCE, output_hook=hook)
    return reply["content"]["status"], "".join(printed)


def wait_for_output(client: Any, execution: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        message = client.get_iopub_msg(timeout=max(0.1, deadline - time.monotonic()))
        if message["parent_header"].get("msg_id") == execution and message["msg_type"] == "stream":
            return


def use(kernel: Any, client: Any) -> None:
    """Computes, interrupts, restarts, shuts down."""
    inside = "print(open('/proc/1/comm').read().strip())"
    assert compute(client, inside) == ("ok", "gpuc-init\n")
    _, pid = compute(client, "import os; x = 1; print(os.getpid())")
    if os.access("/proc/sys/kernel/ns_last_pid", os.W_OK):
        assert int(pid) == kernel.provisioner.pid

    # What comes soon after an error would be dropped with it otherwise.
    sleeping = client.execute("import time; print('up', flush=True); time.sleep(1000)", stop_on_error=False)
    wait_for_output(client, sleeping)
    kernel.interrupt_kernel()
    reply = client.get_shell_msg(timeout=PATIENCE)
    assert (reply["content"]["status"], reply["content"]["ename"]) == ("error", "KeyboardInterrupt")
    outcome = compute(client, "print(x)")
    assert outcome == ("ok", "1\n"), outcome

    kernel.restart_kernel(now=False)
    client.wait_for_ready(timeout=PATIENCE)
    assert compute(client, "print(x)")[0] == "error"
    kernel.restart_kernel(now=True)
    client.wait_for_ready(timeout=PATIENCE)
    assert compute(client, inside) == ("ok", "gpuc-init\n")
    kernel.shutdown_kernel()
    assert not kernel.is_alive()


def main(directory: Path, left: bool) -> None:
    os.environ.update(
        JUPYTER_DATA_DIR=str(directory),
        JUPYTER_RUNTIME_DIR=str(directory / "runtime"),
        JUPYTER_CONFIG_DIR=str(directory / "configuration"),
        IPYTHONDIR=str(directory / "ipython"),
    )
    kernel = jupyter_client.KernelManager(kernel_name="image")
    kernel.start_kernel()
    client = kernel.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=PATIENCE)
        if left:
            # As if it had crashed: nobody shuts the kernel down.
            os.kill(os.getpid(), signal.SIGKILL)
        use(kernel, client)
    finally:
        client.stop_channels()
        if kernel.is_alive():
            kernel.shutdown_kernel(now=True)
    print("done")


if __name__ == "__main__":
    main(Path(sys.argv[1]), "left" in sys.argv[2:])
