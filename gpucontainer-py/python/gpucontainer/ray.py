"""Ray workers in sandboxes, with the GPUs that Ray assigns.

A plug-in for the runtime environments of Ray, tested with 2.60. It is named in a variable where nodes of the cluster are
started, and then used by tasks, actors or whole jobs::

    os.environ["RAY_RUNTIME_ENV_PLUGINS"] = gpucontainer.ray.PLUGINS
    ray.init()

    @ray.remote(num_gpus=1, runtime_env={"gpucontainer": {"image": "my/image:1", "memory": "16G"}})
    def train(): ...

The image has the Python and the Ray of the cluster, in the same versions; it need not have this package. Each worker is
in a sandbox of its own, with what it starts. It sees the node's network and ``/dev/shm``, the directories of Ray, of
temporary files and of the user, and the node's variables, unless the configuration says otherwise.

Of GPUs it sees none, until Ray assigns some to a task or an actor: those it has then and no others, until the task is over
or the actor has ended. What it starts or loads from then on finds them. Inside, ``CUDA_VISIBLE_DEVICES`` names them by
their identifiers. They are leased, shared among Ray's workers, since Ray allots parts of GPUs too; everybody else who asks
for GPUs gets others. What cannot be had is an error of the task, or of the actor's beginning.

A task without this that has GPUs of Ray can start a sandbox with them by itself::

    gpucontainer.run("my/image:1", command, gpus=[str(gpu) for gpu in ray.get_gpu_ids()])

Keys of the configuration, all but the first optional:

``image``
    A reference, or a directory of the node that is the root.
``python``
    The interpreter inside, ``python3``.
``mounts``
    A list of ``"source[:target][:ro]"``.
``env``
    Variables, by their names; ``env_all`` is whether the node's are there as well, true.
``memory``, ``cpus``, ``pids``
    Limits of the worker with all that it starts: bytes or ``"8G"``, cores, processes and threads.
``home``, ``temporary``
    Whether the user's home directory and the one of temporary files are shown, true. Ray's own always is.
``user``, ``read_only``, ``store``, ``driver_root``
    As for :class:`gpucontainer.Sandbox`.
``gpu_wait``
    Seconds to wait for GPUs that somebody other than Ray has leased, 60.
``network``
    ``"host"``, or ``"private"``: the network ``ray`` of this node, for workers of root's. A worker there does not reach
    what listens on the node's loopback addresses, and listens on an address of its own, which the node and its workers
    reach; other nodes of a cluster do not, so that they cannot call it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import __version__ as ray_version
from ray._private.runtime_env.context import RuntimeEnvContext
from ray._private.runtime_env.plugin import RuntimeEnvPlugin

from . import command_line
from .errors import Error
from .image import pull_if_absent
from .ray_worker.outside import CONFIGURATION, encoded, network_of
from .sandbox import DEVNULL, PIPE, Sandbox

__all__ = ["PLUGINS", "GpuContainerPlugin"]

#: What ``RAY_RUNTIME_ENV_PLUGINS`` has to be where nodes are started, if there are no other plug-ins.
PLUGINS = json.dumps([{"class": "gpucontainer.ray.GpuContainerPlugin"}])

_TEXTS = ("python", "user", "store", "driver_root", "network")
_NUMBERS = ("memory", "cpus", "pids", "gpu_wait")
_FLAGS = ("home", "temporary", "env_all", "read_only")
_KEYS = {"image", "mounts", "env", *_TEXTS, *_NUMBERS, *_FLAGS}

_BEGIN = "import sys; sys.path.append(sys.argv.pop(1)); from gpucontainer.ray_worker.outside import main; main()"


class GpuContainerPlugin(RuntimeEnvPlugin):  # type: ignore[misc, unused-ignore]
    """Runs the workers of ``runtime_env={"gpucontainer": {"image": …}}`` in sandboxes."""

    name = "gpucontainer"

    @staticmethod
    def validate(runtime_env_dict: Mapping[str, Any]) -> None:
        """Raises ValueError with what is wrong with the configuration."""
        _words(runtime_env_dict["gpucontainer"])

    async def create(
        self, uri: str | None, runtime_env: Mapping[str, Any], context: RuntimeEnvContext, logger: logging.Logger
    ) -> float:
        """Pulls the image, if it is neither a directory nor in the store, and sees that a worker can run in it."""
        words = _words(runtime_env["gpucontainer"])
        await asyncio.to_thread(_prepare, words, logger)
        return 0

    def modify_context(
        self,
        uris: Sequence[str],
        runtime_env: Mapping[str, Any],
        context: RuntimeEnvContext,
        logger: logging.Logger,
    ) -> None:
        """Lets the worker be started in a sandbox."""
        package = str(Path(__file__).absolute().parents[1])
        # Ray gives this to a shell.
        context.py_executable = shlex.join([sys.executable, "-IS", "-c", _BEGIN, package])
        # Variables may be secrets, and everybody can read command lines. Ray would replace what begins with a dollar.
        context.env_vars[CONFIGURATION] = encoded(_words(runtime_env["gpucontainer"]))


def _words(configuration: object) -> list[str]:
    """The configuration, as options of the command line, which were looked at."""
    wanted = "runtime_env['gpucontainer']"
    if not isinstance(configuration, Mapping):
        raise ValueError(f"{wanted} is a dictionary, with the key 'image'")
    unknown = sorted(str(key) for key in configuration.keys() - _KEYS)
    if unknown:
        raise ValueError(f"{wanted}: {unknown[0]!r} is none of {', '.join(sorted(_KEYS))}")
    image = configuration.get("image")
    if not isinstance(image, str) or not image or image.startswith("-"):
        raise ValueError(f"{wanted}['image'] is the reference of an image, not {image!r}")
    if configuration.get("network", "host") not in ("host", "private"):
        raise ValueError(
            f"{wanted}['network'] is 'host' or 'private': the node connects to its workers, and they to it"
        )
    words: list[str] = []
    for key, value in configuration.items():
        option = f"--{key.replace('_', '-')}"
        if key in ("image", "python"):
            continue
        elif key in _FLAGS:
            if not isinstance(value, bool):
                raise ValueError(f"{wanted}[{key!r}] is true or false, not {value!r}")
            if key != "read_only":
                words.append(option if value else option.replace("--", "--no-", 1))
            elif value:
                words.append(option)
        elif key == "mounts":
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise ValueError(f"{wanted}['mounts'] is a list of 'source[:target][:ro]'")
            words += [f"--mount={mount}" for mount in value]
        elif key == "env":
            if not isinstance(value, Mapping):
                raise ValueError(f"{wanted}['env'] is a dictionary")
            words += [f"--env={name}={text}" for name, text in value.items()]
        else:
            words.append(f"{option}={value}")
    python = str(configuration.get("python", "python3"))
    try:
        return command_line.exec_words(image, [python], words, os.getcwd())
    except ValueError as error:
        raise ValueError(f"{wanted}: {error}") from None


def _prepare(words: Sequence[str], logger: logging.Logger) -> None:
    """Raises RuntimeError with what keeps workers from running in the image: Ray starts them again and again otherwise."""
    image, options = command_line.described(words, os.getcwd(), ())
    wanted = f"runtime_env['gpucontainer']: image {image}"
    try:
        logger.info("preparing image %s", image)
        pull_if_absent(image, options["store"])
        options["command"] = [*options["command"], "-c", _PROBE]
        options["network"] = network_of(options)
        del options["gpu_timeout"]
        with Sandbox(image, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, **options) as sandbox:
            output = sandbox.communicate(timeout=_PROBE_TIME)
    except (Error, OSError) as error:
        raise RuntimeError(f"{wanted}: {error}") from error
    if not output.status.success:
        last = output.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(f"{wanted}: its Python cannot import ray: {''.join(last) or output.status}")
    theirs = output.stdout.decode(errors="replace").split()[-2:]
    ours = [ray_version, platform.python_version()]
    if theirs != ours:
        found, needed = (f"Ray {ray} and Python {python}" for ray, python in (theirs, ours))
        raise RuntimeError(f"{wanted}: it has {found}, and the cluster {needed}")


#: Says which versions are inside, and that what the other half of a worker takes the place of is there.
_PROBE = """
import platform, ray
from ray._private import function_manager, utils
utils.set_visible_accelerator_ids, utils.reset_visible_accelerator_env_vars
function_manager.FunctionActorManager.get_execution_info
print(ray.__version__, platform.python_version())
"""

#: Seconds after which an interpreter that does not answer is given up.
_PROBE_TIME = 300
