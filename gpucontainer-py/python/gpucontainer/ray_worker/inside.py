"""The half of a Ray worker that is inside: runs it, and says outside which GPUs Ray has assigned.

A file of its own, which the image's Python executes: nothing of this package is there.
"""

from __future__ import annotations

import functools
import json
import os
import runpy
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

_CUDA = "CUDA_VISIBLE_DEVICES"


class Outside:
    """The other half."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._connection = socket.socket(fileno=descriptor)
        self._lock = threading.Lock()

    def assign(self, ids: list[str]) -> dict[str, Any]:
        """Asks for these GPUs and no others; variables that go with them."""
        with self._lock:
            self._connection.send(json.dumps(ids).encode())
            answer: dict[str, Any] = json.loads(self._connection.recv(1 << 20))
        if "error" in answer:
            raise RuntimeError(f"gpucontainer: GPU {', '.join(ids)}, which Ray has assigned: {answer['error']}")
        return answer


class Assignment:
    """Goes on outside where Ray chooses the GPUs of a task."""

    def __init__(self, outside: Outside) -> None:
        from ray._private import utils
        from ray._private.function_manager import FunctionActorManager

        self._outside = outside
        #: What went wrong with the GPUs of the task that is about to run.
        self._failed: RuntimeError | None = None
        self._choose: Callable[[], Mapping[str, str | None]] = utils.set_visible_accelerator_ids
        self._reset: Callable[[Mapping[str, str | None]], None] = utils.reset_visible_accelerator_env_vars
        utils.set_visible_accelerator_ids = self.chosen
        utils.reset_visible_accelerator_env_vars = self.over
        find = FunctionActorManager.get_execution_info

        @functools.wraps(find)
        def found(manager: Any, job: Any, descriptor: Any) -> Any:
            info = find(manager, job, descriptor)
            return info if descriptor.is_actor_method() else self._guarded(info)

        FunctionActorManager.get_execution_info = found

    def chosen(self) -> Mapping[str, str | None]:
        """In the place of Ray's own: chooses, and has the GPUs attached."""
        import ray

        before = dict(self._choose())
        context = ray.get_runtime_context()
        ids = sorted(str(gpu) for gpu in context.get_accelerator_ids().get("GPU", ()))
        try:
            answer = self._outside.assign(ids)
        except RuntimeError as error:
            if context.get_actor_id() is not None:
                # As if it came from the actor's own beginning.
                raise ray.exceptions.RayActorError(error_msg=str(error), actor_init_failed=True) from error
            # An error here would be one of the worker; raised by the task, it is the task's.
            self._failed = error
            return before
        for name, value in answer["environment"].items():
            before.setdefault(name, os.environ.get(name))
            os.environ[name] = value
        if ids and _CUDA in before:
            # An index is one among all of the node; these here are all that there is inside.
            os.environ[_CUDA] = ",".join(answer["visible"])
        return before

    def over(self, before: Mapping[str, str | None]) -> None:
        """In the place of Ray's own, at the end of a task."""
        self._reset(before)
        self._failed = None
        self._outside.assign([])

    def _guarded(self, info: Any) -> Any:
        """The function of a task, which raises what went wrong before it."""
        function = info.function
        if getattr(function, "_looks_after_gpus", False):
            return info

        @functools.wraps(function)
        def guarded(*arguments: Any, **named: Any) -> Any:
            failed, self._failed = self._failed, None
            if failed is not None:
                raise failed
            return function(*arguments, **named)

        guarded._looks_after_gpus = True  # type: ignore[attr-defined]
        return info._replace(function=guarded)


def own_address(node: str) -> str:
    """The address from which the node is reached."""
    family = socket.AF_INET6 if ":" in node else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        # This chooses an address, and sends nothing.
        probe.connect((node, 1))
        return str(probe.getsockname()[0])


def main() -> None:
    """Becomes the worker."""
    # The directory of this file has nothing to be imported.
    del sys.path[0]
    node = os.environ.pop("GPUCONTAINER_RAY_NODE", None)
    if node is not None:
        # Where others find this worker, which is not where they find the node.
        ours, theirs = f"--node-ip-address={own_address(node)}", f"--node-ip-address={node}"
        sys.argv = [ours if word == theirs else word for word in sys.argv]
    Assignment(Outside(int(os.environ.pop("GPUCONTAINER_RAY_FD"))))
    runpy.run_module("ray._private.workers.default_worker", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
