"""The command line: a program of an image as if it were one of the host.

``exec`` runs it in the place of the caller; ``stand-in`` writes an executable file that does, for software that takes
the path of a program, above all of a Python.
"""

from __future__ import annotations

import argparse
import ipaddress
import math
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import _native, errors, stand_in, surroundings
from .limits import Mount
from .network import PrivateNetwork
from .ports import PortMapping

#: Further options, as a shell has words: ``GPUCONTAINER_OPTIONS='--memory 2G --gpus 1'``.
OPTIONS_VARIABLE = "GPUCONTAINER_OPTIONS"

#: The exit codes of shells and other engines: this program failed; the command cannot be executed; it is not there.
FAILED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127

_EXEC = """\
Runs a command of an image in the place of this process: with its input, output, terminal and further descriptors, its
working directory, user, variables and directories. Signals go to the command, its end is this process' end: the same
exit code, or death by the same signal. Nothing is left behind."""

_STAND_IN = """\
Writes an executable file that runs a command of an image as `exec` does, with the arguments that it is given. It can be
used where a path of a program is wanted: as multiprocessing.set_executable(), the python= of dask-jobqueue and
submitit, the first word of a Jupyter kernel."""

_NOTES = f"""\
Options are also taken from the variable {OPTIONS_VARIABLE}, as words of a shell; those of the command line come last and
win, those of a stand-in come first. Exit codes: 125, the command could not be started; 126, it cannot be executed; 127,
it is not there."""


class _Parser(argparse.ArgumentParser):
    """One whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        raise _WrongUse(f"{message} (see {self.prog} --help)" if self.add_help else message)


class _WrongUse(Exception):
    """What was said cannot be understood."""


def _size(text: str) -> int:
    """Bytes, with K, M, G, T for powers of 1,024."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 512M or 8G")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def _path(base: str) -> Callable[[str], str]:
    """Paths as they are meant in the directory ``base``."""
    return lambda text: os.path.normpath(os.path.join(base, os.path.expanduser(text)))


def _mount(base: str) -> Callable[[str], Mount]:
    """``SOURCE[:TARGET][:ro|:rw]``."""

    def mount(text: str) -> Mount:
        source, *rest = text.split(":")
        mode = rest.pop() if rest and rest[-1] in ("ro", "rw") else "rw"
        if not source or len(rest) > 1 or (rest and not rest[0].startswith("/")):
            raise argparse.ArgumentTypeError(f"{text!r} is not SOURCE[:/TARGET][:ro]")
        source = _path(base)(source)
        return Mount.bind(source, rest[0] if rest else source, read_only=mode == "ro")

    return mount


def _port(text: str) -> PortMapping:
    """``[ADDRESS:][HOST:]CONTAINER[/tcp|/udp]``."""
    match = re.fullmatch(r"(?:(\[[^]]+\]|[\d.]+):)?(?:(\d{0,5}):)?(\d{1,5})(?:/(tcp|udp))?", text)
    try:
        if match is None:
            raise ValueError
        address = None if match[1] is None else str(ipaddress.ip_address(match[1].strip("[]")))
        host, inside = int(match[2] or 0), int(match[3])
        if not (0 <= host < 65536 and 0 < inside < 65536):
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not [ADDRESS:][HOST:]PORT[/udp]") from None
    return PortMapping(inside, host, "udp" if match[4] == "udp" else "tcp", address=address)


def _gpus(text: str) -> int | str:
    """A count, ``all``, or after ``device=`` indices and identifiers; names of CDI as they are."""
    if text.isdecimal():
        return int(text)
    return text.removeprefix("device=")


def _seconds(text: str) -> float:
    value = math.inf if text == "forever" else float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no time")
    return value


def _options(parser: argparse.ArgumentParser, base: str) -> None:
    """What can be said of a sandbox; the same for both commands and the variable."""
    add = parser.add_argument_group("what it sees of the caller").add_argument
    flag = argparse.BooleanOptionalAction
    add(
        "--isolated",
        action="store_true",
        help="show nothing of the caller unless asked for: no directories, no variables, no network, memory of its own",
    )
    add("--mount", type=_mount(base), action="append", metavar="SOURCE[:TARGET][:ro]", help="show a file or directory")
    add(
        "--cwd",
        type=_path(base),
        metavar="DIRECTORY",
        help="the working directory inside; by default the caller's, which is shown",
    )
    add("--home", action=flag, help="show the home directory (the default)")
    add("--temporary", action=flag, help="show the directory of temporary files (the default)")
    add(
        "--paths",
        action=flag,
        help="show the directories that arguments of the command name, such as that of a script (the default)",
    )
    add("--env", action="append", metavar="NAME[=VALUE]", help="set a variable, or take it from the caller")
    add(
        "--env-all",
        action=flag,
        help="take all variables of the caller but those that say where its files are, as PATH (the default)",
    )
    add(
        "--ipc",
        choices=("host", "private"),
        help="whose /dev/shm: host, so that processes in several sandboxes share semaphores and memory (the default)",
    )
    add("--shm-size", type=_size, metavar="BYTES", help="the size of a /dev/shm of its own; 64M by default")
    add(
        "--network",
        choices=("host", "none", "outbound", "private"),
        help="host (the default), none, for ordinary users a way out, or for root one with all others that say private; "
        "none if ports are published",
    )
    add(
        "--publish",
        "-p",
        type=_port,
        action="append",
        metavar="[ADDRESS:][HOST:]PORT[/udp]",
        help="publish a port of the container, on 127.0.0.1 and ::1 unless told otherwise; without HOST on any free port",
    )
    add = parser.add_argument_group("what it may use").add_argument
    add("--gpus", type=_gpus, metavar="COUNT|all|device=ID,…", help="lease GPUs for it")
    add("--gpu-wait", type=_seconds, metavar="SECONDS|forever", help="how long to wait for them; not at all by default")
    add("--driver-root", type=_path(base), metavar="DIRECTORY", help="where the GPU driver's files are")
    add(
        "--memory",
        type=_size,
        metavar="BYTES",
        help="at most so much memory, as in 512M or 8G; without any limit it stays in the caller's control groups",
    )
    add("--cpus", type=float, metavar="CORES", help="at most so much processor time, as in 1.5")
    add("--pids", type=int, metavar="COUNT", help="at most so many processes and threads")
    add = parser.add_argument_group("the sandbox").add_argument
    add("--user", metavar="USER[:GROUP]", help="run as this user of the image; by default as the caller's")
    add("--name", help="the sandbox's name")
    add("--read-only", action="store_true", help="keep the image's files as they are")
    add("--store", type=_path(base), metavar="DIRECTORY", help="the image store, if not the user's")
    add("--options", metavar="FILE", action="append", help="a file with more options, words as in a shell, # comments")


def _parser(base: str) -> _Parser:
    parser = _Parser(prog="python -m gpucontainer", description="GPU containers as a function call.")
    parser.add_argument("--version", action="version", version=_native.__version__)
    commands = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, about: str, usage: str, description: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=about,
            usage=f"%(prog)s {usage}",
            description=description,
            epilog=_NOTES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    about = "run a command of an image in the place of this process"
    run = command("exec", about, "[OPTIONS] IMAGE [-- COMMAND ARGUMENT…]", _EXEC)
    about = "write an executable file that runs a command of an image"
    write = command("stand-in", about, "[OPTIONS] IMAGE FILE -- COMMAND [ARGUMENT…]", _STAND_IN)
    for verb in (run, write):
        verb.add_argument("image", metavar="IMAGE", help="a reference, or a directory that begins with / or .")
    write.add_argument("file", metavar="FILE", help="the executable to write; another stand-in there is replaced")
    for verb in (run, write):
        _options(verb, base)
    return parser


def _expand(words: Sequence[str], base: str, depth: int = 0) -> list[str]:
    """The words, and before them those of the files that they name."""
    reader = _Parser(add_help=False, allow_abbrev=False)
    reader.add_argument("--options", action="append", default=[])
    found, rest = reader.parse_known_args(list(words))
    if depth > 8:
        raise _WrongUse("--options: files of options name each other")
    more: list[str] = []
    for file in found.options:
        try:
            more += _expand(shlex.split(Path(_path(base)(file)).read_text(), comments=True), base, depth + 1)
        except OSError as error:
            raise _WrongUse(f"--options: {error}") from None
        except ValueError as error:
            raise _WrongUse(f"--options: {file}: {error}") from None
    return [*more, *rest]


def _of_environment(base: str) -> list[str]:
    """The options of the variable, looked at by themselves so that what is wrong with them is said of them."""
    try:
        return _checked(_expand(shlex.split(os.environ.get(OPTIONS_VARIABLE, "")), base), base)
    except (ValueError, _WrongUse) as error:
        raise _WrongUse(f"{OPTIONS_VARIABLE}: {error}") from None


def _checked(words: list[str], base: str) -> list[str]:
    """The words, which are options and nothing else."""
    checker = _Parser(add_help=False, allow_abbrev=False)
    _options(checker, base)
    _, rest = checker.parse_known_args(words)
    if rest:
        raise _WrongUse(f"{rest[0]!r} is no option")
    return words


def _split(words: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """What is before the first ``--``, and what is after it."""
    if "--" not in words:
        return list(words), None
    at = list(words).index("--")
    return list(words[:at]), list(words[at + 1 :])


def _image(text: str, base: str) -> str | Path:
    return Path(_path(base)(text)) if text.startswith(("/", ".")) else text


def _described(said: argparse.Namespace, command: list[str] | None, given: Sequence[str]) -> dict[str, Any]:
    """The arguments of :class:`~gpucontainer.Sandbox`; ``given`` are those of the command's that the caller gave now."""

    def wanted(flag: bool | None) -> bool:
        return not said.isolated if flag is None else flag

    chosen: list[Mount] = said.mount or []
    shown = surroundings.directories(
        cwd=said.cwd is None and not said.isolated,
        home=wanted(said.home),
        temporary=wanted(said.temporary),
        arguments=given if wanted(said.paths) else (),
    )
    ipc = said.ipc or ("private" if said.isolated or said.shm_size is not None else "host")
    if ipc == "host" and said.shm_size is not None:
        raise _WrongUse("--shm-size: the host's /dev/shm has its own size; --ipc private has one of its own")
    if ipc == "host" and os.path.isdir("/dev/shm"):
        shown.append(Mount.bind("/dev/shm", "/dev/shm"))
    env = surroundings.variables() if wanted(said.env_all) else {}
    if not wanted(said.home):
        env.pop("HOME", None)
    for pair in said.env or ():
        name, given_value, value = pair.partition("=")
        if not name:
            raise _WrongUse(f"--env: {pair!r} is not NAME[=VALUE]")
        if given_value:
            env[name] = value
        elif name in os.environ:
            env[name] = os.environ[name]
    network = said.network or ("none" if said.isolated or said.publish else "host")
    cwd = said.cwd
    if cwd is None and not said.isolated:
        cwd = os.getcwd()
    user = said.user
    if user is None and not said.isolated and os.geteuid() == 0:
        # For anybody else the one user inside is the caller.
        user = f"{os.getuid()}:{os.getgid()}"
    options: dict[str, Any] = {
        "command": command,
        "entrypoint": None if command is None else [],
        "cwd": cwd,
        "user": user,
        "env": env,
        "mounts": [*surroundings.without_covered(shown, chosen), *chosen],
        "network": PrivateNetwork("default") if network == "private" else network,
        "ports": said.publish,
        "shm_size": said.shm_size,
        "gpus": said.gpus,
        "gpu_timeout": said.gpu_wait,
        "driver_root": said.driver_root,
        "memory": said.memory,
        "cpus": said.cpus,
        "pids": said.pids,
        # Without limits of its own it stays under those of the caller, such as a batch job's.
        "cgroup": None if said.memory or said.cpus or said.pids else False,
        "name": said.name,
        "read_only": said.read_only or None,
        "umask": stand_in.current_umask(),
        "store": None if said.store is None else _native.ImageStore(said.store),
    }
    return options


def stand_in_words(
    path: str | os.PathLike[str], image: str, command: Sequence[str], options: Sequence[str], base: str
) -> list[str]:
    """The words of a stand-in, once they were looked at."""
    try:
        words = ["stand-in", *_checked(_expand(options, base), base), image, os.fspath(path), "--", *command]
        before, _ = _split(words)
        said = _parser(base).parse_args(before)
        if (said.image, said.file) != (image, os.fspath(path)):
            raise _WrongUse(f"{image!r} is no image")
        # What is wrong is said now, not when the stand-in is used.
        _described(said, list(command), ())
    except _WrongUse as error:
        raise errors.InvalidArgumentError(str(error)) from None
    return words


def exec_words(image: str, command: Sequence[str], options: Sequence[str], base: str) -> list[str]:
    """The words of an ``exec``, once they were looked at."""
    words = ["exec", *options, image, "--", *command]
    try:
        described(words, base, ())
    except (_WrongUse, TypeError) as error:
        raise errors.InvalidArgumentError(str(error)) from None
    return words


def described(words: Sequence[str], base: str, given: Sequence[str]) -> tuple[str | Path, dict[str, Any]]:
    """Image and arguments of the :class:`~gpucontainer.Sandbox` that the words of an ``exec`` mean."""
    before, command = _split(words)
    said = _parser(base).parse_args(before)
    return _image(said.image, base), _described(said, command, given)


def stand_in_main() -> NoReturn:
    """Does what a stand-in says, and does not return.

    After the place of this package come the directory in which it was written, the number of its words, the words, and the
    arguments that it was called with.
    """
    base, count, *rest = sys.argv[2:]
    at = int(count)
    _guarded(lambda: _stand_in(rest[:at], base, rest[at:]))


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Does what the command line says; does not return."""
    _guarded(lambda: _do(sys.argv[1:] if words is None else words, os.getcwd()))


def _stand_in(words: Sequence[str], base: str, given: Sequence[str]) -> NoReturn:
    before, command = _split(words)
    # What a stand-in says of itself its environment can change.
    said = _parser(base).parse_args([*before, *_of_environment(os.getcwd())])
    stand_in.become(_image(said.image, base), _described(said, [*(command or ()), *given], given))


def _do(words: Sequence[str], base: str) -> None:
    before, command = _split(words)
    parser = _parser(base)
    if before[:1] not in (["exec"], ["stand-in"]):
        parser.parse_args(before)
    verb, rest = before[0], _expand(before[1:], base)
    if verb == "stand-in":
        said = parser.parse_args([verb, *rest])
        if not command:
            raise _WrongUse("stand-in: say after -- which command it stands for")
        _described(said, command, ())
        stand_in.write_script(Path(said.file), [verb, *rest, "--", *command])
        return
    said = parser.parse_args([verb, *_of_environment(base), *rest])
    stand_in.become(_image(said.image, base), _described(said, command, (command or [])[1:]))


def _guarded(work: Callable[[], object]) -> NoReturn:
    try:
        work()
        code = 0
    except KeyboardInterrupt:
        # As a shell wants it: whoever waits for this process sees that it was interrupted.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        code = 128 + signal.SIGINT
    except errors.CommandNotFoundError as error:
        code = _complain(error, NOT_EXECUTABLE if error.errno == 13 else NOT_FOUND)
    except (errors.Error, _WrongUse, OSError, TypeError, ValueError) as error:
        code = _complain(error, FAILED)
    sys.exit(code)


def _complain(error: BaseException, code: int) -> int:
    text = " ".join(str(error).split())
    print(f"gpucontainer: {text}", file=sys.stderr)
    return code
