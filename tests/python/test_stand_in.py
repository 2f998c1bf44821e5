"""A program of an image in the place of one of the host: streams, signals, terminals, ends, what it sees, errors."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shlex
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from host_python import PYTHON, ROOT

import gpucontainer
from gpucontainer import command_line, errors, stand_in

pytest_plugins = ["stand_in_fixtures"]

pytestmark = [pytest.mark.usefixtures("clean"), pytest.mark.timeout(120)]
README = (ROOT / "README.md").read_text()
IS_ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not IS_ROOT, reason="not root")

#: How long anything that should happen may take on a machine that is busy.
PATIENCE = 30.0

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Write = Callable[..., str]


@pytest.fixture
def command(options: list[str]) -> list[str]:
    return [sys.executable, "-m", "gpucontainer", "exec", *options]


@pytest.fixture
def run(command: list[str]) -> Run:
    """Runs Python code in the image, with further options."""

    def run_code(code: str, *more: str, arguments: tuple[str, ...] = (), **wanted: object) -> object:
        words = [*command, *more, "python:test", "--", PYTHON, "-c", code, *arguments]
        return subprocess.run(words, capture_output=True, text=True, timeout=60, **wanted)  # type: ignore[call-overload]

    return run_code  # type: ignore[return-value]


def test_streams_arguments_and_exit_codes(run: Run) -> None:
    code = "import sys; sys.stdout.write(sys.stdin.read()); print(sys.argv[1:], file=sys.stderr); sys.exit(9)"
    done = run(code, arguments=("--", "a b", "--memory"), input="input\n")
    assert (done.stdout, done.stderr, done.returncode) == ("input\n", "['--', 'a b', '--memory']\n", 9)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGRTMIN])
def test_a_death_by_signal_is_the_same(run: Run, number: int) -> None:
    assert run(f"import os; os.kill(os.getpid(), {int(number)})").returncode == -number


def test_it_sees_what_it_needs_of_the_caller(run: Run, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("print('imported')")
    code = "import os, tempfile, module; print(os.getcwd(), os.environ['WORD'], tempfile.gettempdir(), os.getpid())"
    environ = {**os.environ, "WORD": "of the caller", "HOME": str(tmp_path)}
    done = run(f"import sys; sys.path.insert(0, ''); {code}", cwd=tmp_path, env=environ)
    imported, line = done.stdout.splitlines()
    cwd, *words, temporary, pid = line.split()
    assert (imported, cwd, words) == ("imported", str(tmp_path), ["of", "the", "caller"])
    assert os.path.samefile(temporary, environ.get("TMPDIR", "/tmp"))
    assert int(pid) > 1


def test_files_belong_to_the_caller(run: Run, tmp_path: Path) -> None:
    done = run("open('made', 'w')", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = (tmp_path / "made").stat()
    assert (made.st_uid, made.st_gid) == (os.getuid(), os.getgid())


def test_an_isolated_one_sees_nothing(run: Run, tmp_path: Path) -> None:
    code = f"import os; print(os.environ.get('WORD'), os.path.exists({str(tmp_path)!r}), len(os.listdir('/dev/shm')))"
    Path("/dev/shm/psm_of_a_test").touch()
    try:
        done = run(code, "--isolated", cwd=tmp_path, env={**os.environ, "WORD": "secret"})
    finally:
        Path("/dev/shm/psm_of_a_test").unlink()
    assert done.stdout == "None False 0\n", done.stderr
    code = "import os; print(os.environ['WORD'], os.environ['OTHER'], open('/data/file').read(), len(os.listdir('/sys/class/net')))"
    (tmp_path / "file").write_text("content")
    chosen = ["--isolated", "--env", "WORD", "--env", "OTHER=o", "--mount", f"{tmp_path}:/data:ro"]
    assert run(code, *chosen, env={**os.environ, "WORD": "w"}).stdout == "w o content 1\n"


def test_an_argument_names_a_directory_to_show(options: list[str]) -> None:
    directory = Path("/var/lib" if IS_ROOT else str(Path.home())) / f"gpuc-test-{os.getpid()}"
    directory.mkdir()
    try:
        script = directory / "script.py"
        script.write_text("import beside; print(beside.WORD)")
        (directory / "beside.py").write_text("WORD = 'found'")
        words = [sys.executable, "-m", "gpucontainer", "exec", *options, "--no-home", "python:test", "--", PYTHON, "-B"]
        done = subprocess.run([*words, script], capture_output=True, text=True, timeout=60)
        assert done.stdout == "found\n", done.stderr
    finally:
        for file in directory.iterdir():
            file.unlink()
        directory.rmdir()


def test_further_descriptors_are_passed_on(command: list[str]) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        code = f"import os; os.write({theirs.fileno()}, os.read({theirs.fileno()}, 9)[::-1])"
        words = [*command, "python:test", "--", PYTHON, "-c", code]
        process = subprocess.Popen(words, pass_fds=[theirs.fileno()])
        theirs.close()
        ours.settimeout(PATIENCE)
        ours.send(b"abc")
        assert ours.recv(9) == b"cba"
        # Nobody but the program had the other end.
        assert ours.recv(9) == b""
        assert process.wait(PATIENCE) == 0


#: Says each signal and each line that comes, a line each. It waits for both at once: a handler would not run when its
#: signal comes just before a read begins.
LISTENER = """
import os, select, signal, sys
heard = [signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGWINCH, signal.SIGRTMIN + 3]
reader, writer = os.pipe()
os.set_blocking(writer, False)
signal.set_wakeup_fd(writer)
for number in heard:
    signal.signal(number, lambda number, frame: None)
print("ready", os.isatty(0), flush=True)
while True:
    ready = select.select([0, reader], [], [])[0]
    if reader in ready:
        for number in os.read(reader, 64):
            print("signal", number, flush=True)
    elif not (line := os.read(0, 4096)):
        break
    else:
        print("line", line.decode().strip(), flush=True)
"""


def test_signals_arrive_once(command: list[str]) -> None:
    words = [*command, "python:test", "--", PYTHON, "-c", LISTENER]
    pipe = subprocess.PIPE
    process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "ready False\n"
    sent = [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGRTMIN + 3]
    for number in sent:
        process.send_signal(number)
        assert process.stdout.readline() == f"signal {int(number)}\n"
    # Notebooks interrupt the whole process group.
    os.killpg(process.pid, signal.SIGINT)
    assert process.stdout.readline() == f"signal {int(signal.SIGINT)}\n"
    out, _ = process.communicate("end\n", timeout=PATIENCE)
    assert (out, process.returncode) == ("line end\n", 0)


class Terminal:
    """A program on a terminal, which is its controlling one."""

    def __init__(self, words: list[str]) -> None:
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.execv(words[0], words)
        self.seen = b""

    def until(self, text: str) -> str:
        """What was written up to a text."""
        deadline = time.monotonic() + PATIENCE
        while text.encode() not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self.master], [], [], left)[0], self.seen
            self.seen += os.read(self.master, 4096)
        before, _, self.seen = self.seen.partition(text.encode())
        return before.decode()

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def state(self) -> str:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_terminal_and_its_keys(write: Write) -> None:
    terminal = Terminal([write(), "-u", "-c", LISTENER])
    try:
        terminal.until("ready True\r\n")
        for _ in range(2):
            terminal.type("\x03")
            terminal.until(f"signal {int(signal.SIGINT)}\r\n")
        fcntl.ioctl(terminal.master, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        terminal.until(f"signal {int(signal.SIGWINCH)}\r\n")
        terminal.type("\x1a")
        pid, status = os.waitpid(terminal.pid, os.WUNTRACED)
        assert pid == terminal.pid and os.WIFSTOPPED(status)
        os.kill(terminal.pid, signal.SIGCONT)
        terminal.type("words\n")
        # Each key had come once: nothing else was said meanwhile.
        assert "signal" not in terminal.until("line words\r\n")
        terminal.type("\x04")
        _, status = os.waitpid(terminal.pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    finally:
        os.close(terminal.master)


def test_it_stays_under_the_limits_of_the_caller(command: list[str]) -> None:
    words = [*command, "python:test", "--", PYTHON, "-c", "print('up', flush=True); input()"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    pid = str(process.pid)
    for _ in ("supervisor", "program"):
        (pid,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert Path(f"/proc/{pid}/cgroup").read_text() == Path("/proc/self/cgroup").read_text()
    assert process.communicate("\n", timeout=PATIENCE)[0] == ""


def test_the_program_keeps_its_number(write: Write) -> None:
    if not os.access("/proc/sys/kernel/ns_last_pid", os.W_OK):
        pytest.skip("the kernel lets nobody choose process ids")
    process = subprocess.Popen([write(), "-c", "import os; print(os.getpid())"], stdout=subprocess.PIPE, text=True)
    out, _ = process.communicate(timeout=PATIENCE)
    assert int(out) == process.pid


def test_options_of_files_and_of_the_environment(run: Run, write: Write, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "wanted").write_text("# what it needs\n--env 'A=of the file'\n--env B=file --mount data:/data\n")
    code = "import os; print(os.environ['A'], os.environ['B'], os.path.isdir('/data'))"
    environ = {**os.environ, command_line.OPTIONS_VARIABLE: "--env B=environment"}
    assert run(code, "--options", "wanted", cwd=tmp_path).stdout == "of the file file True\n"
    done = run(code, "--options", "wanted", "--env", "B=line", cwd=tmp_path, env=environ)
    assert done.stdout == "of the file line True\n", done.stderr
    # What a stand-in says of itself can be changed where it is used, from every directory.
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        path = write("--options", "wanted")
    finally:
        os.chdir(before)
    (tmp_path / "wanted").unlink()
    said = subprocess.run([path, "-c", code], capture_output=True, text=True, env=environ, cwd="/", timeout=60)
    assert said.stdout == "of the file environment True\n", said.stderr


@needs_root
def test_limits_and_ports(run: Run, command: list[str]) -> None:
    done = run("x = b'x' * (400 << 20)", "--memory", "64M", "--cpus", "1", "--pids", "20")
    assert done.returncode == -signal.SIGKILL
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = "import socket; s = socket.create_server(('0.0.0.0', 80)); print('up', flush=True); s.accept()[0].send(b'hello')"
    words = [*command, "--publish", f"127.0.0.1:{port}:80", "python:test", "--", PYTHON, "-c", server]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        assert connection.recv(16) == b"hello"
    assert process.wait(PATIENCE) == 0
    process.stdout.close()


@needs_root
@needs_root
def test_a_private_network(run: Run) -> None:
    names = "[name for _, name in socket.if_nameindex()]"
    code = f"import socket; print({names}, socket.gethostbyname(socket.gethostname()))"
    interfaces, _, address = run(code, "--network", "private").stdout.strip().rpartition(" ")
    assert interfaces == "['lo', 'eth0']" and address.startswith(("10.", "172.")), (interfaces, address)


def test_gpus(run: Run, fake_machine: Path) -> None:
    code = (
        "import os; print(sorted(name for name in os.listdir('/dev') if name[6:].isdecimal() and name[:6] == 'nvidia'))"
    )
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": "1,3,5"}
    done = run(
        f"{code}; print(os.environ.get('CUDA_VISIBLE_DEVICES'))",
        "--gpus",
        "device=3,1",
        "--driver-root",
        str(fake_machine),
        env=environ,
    )
    assert done.stdout == "['nvidia1', 'nvidia3']\nNone\n", done.stderr


BAD = [
    ([], "the following arguments are required: IMAGE"),
    (["--memory", "1X", "i"], "'1X' is no size"),
    (["--mount", "a:b", "i"], "'a:b' is not SOURCE"),
    (["--publish", "x", "i"], "'x' is not [ADDRESS:][HOST:]PORT"),
    (["--publish", "70000:1", "i"], "'70000:1' is not"),
    (["--env", "=x", "i"], "'=x' is not NAME[=VALUE]"),
    (["--ipc", "host", "--shm-size", "1G", "i"], "--shm-size"),
    (["--options", "/no/such/file", "i"], "/no/such/file"),
    (["--gpu-wait", "-1", "i"], "'-1' is no time"),
    (["--teleport", "i"], "--teleport"),
    (["i", "python3"], "python3"),
    (["/no/such/root"], "/no/such/root"),
]


@pytest.mark.parametrize(("words", "said"), BAD)
def test_what_is_wrong_is_said_in_a_line(words: list[str], said: str) -> None:
    words = [sys.executable, "-m", "gpucontainer", "exec", *words, "--", "true"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == command_line.FAILED
    assert done.stderr.startswith("gpucontainer: ") and done.stderr.count("\n") == 1 and said in done.stderr


@pytest.mark.parametrize(
    ("program", "code"), [("no-such-program", 127), ("/no/such/program", 127), ("/etc/passwd", 126)]
)
def test_what_cannot_be_executed(command: list[str], program: str, code: int) -> None:
    done = subprocess.run([*command, "python:test", "--", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == code and program in done.stderr and done.stderr.count("\n") == 1


def test_the_fork_server_of_multiprocessing_is_refused(write: Write) -> None:
    program = (
        "import multiprocessing, sys\n"
        "context = multiprocessing.get_context('forkserver')\n"
        "context.set_executable(sys.argv[1])\n"
        "context.Process(target=print, args=('must not run',)).start()\n"
    )
    done = subprocess.run([sys.executable, "-c", program, write()], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, ""), done
    assert "gpucontainer: multiprocessing: its forkserver" in done.stderr and "use the method spawn" in done.stderr


def test_the_environment_is_blamed_for_its_options(command: list[str]) -> None:
    for wrong in ("--memory", "word", "'"):
        environ = {**os.environ, command_line.OPTIONS_VARIABLE: wrong}
        words = [*command, "python:test", "--", "true"]
        done = subprocess.run(words, capture_output=True, text=True, env=environ, timeout=60)
        assert done.returncode == command_line.FAILED and f"{command_line.OPTIONS_VARIABLE}: " in done.stderr


def test_stand_ins_are_written_whole_or_not_at_all(tmp_path: Path, options: list[str]) -> None:
    path = tmp_path / "python"
    words = [sys.executable, "-m", "gpucontainer", "stand-in", *options, "python:test", str(path), "--", PYTHON]
    for _ in range(2):
        subprocess.run(words, check=True, timeout=60)
    assert os.access(path, os.X_OK) and os.listdir(tmp_path) == ["python"]
    assert path.read_text().startswith("#!/bin/sh\n") and shlex.quote(PYTHON) in path.read_text()
    other = tmp_path / "other"
    other.write_text("precious")
    with pytest.raises(errors.AlreadyExistsError, match="no stand-in"):
        stand_in.write(other, "python:test", [PYTHON])
    assert other.read_text() == "precious"
    for wrong in (["--memory", "much"], ["--no-such-option"], ["word"]):
        with pytest.raises(errors.InvalidArgumentError, match=wrong[-1]):
            stand_in.write(tmp_path / "new", "python:test", [PYTHON], *wrong)
    with pytest.raises(errors.InvalidArgumentError, match="list of words"):
        stand_in.write(tmp_path / "new", "python:test", "python3")
    assert sorted(os.listdir(tmp_path)) == ["other", "python"]


def test_help_and_version() -> None:
    for words in (["--help"], ["exec", "--help"], ["stand-in", "--help"]):
        done = subprocess.run(
            [sys.executable, "-m", "gpucontainer", *words], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0 and done.stdout.startswith("usage: python -m gpucontainer")
    done = subprocess.run(
        [sys.executable, "-m", "gpucontainer", "--version"], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == f"{gpucontainer.__version__}\n"


@needs_root
def test_the_commands_of_the_readme_run(
    python_store: gpucontainer.ImageStore, options: list[str], tmp_path: Path
) -> None:
    python_store.tag(python_store.image("python:test"), "python:3.13")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    (tmp_path / "bin/python").chmod(0o755)
    (tmp_path / "bin/python3").symlink_to(PYTHON)
    environ = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        command_line.OPTIONS_VARIABLE: shlex.join([*options, "--env", f"PATH={tmp_path / 'bin'}:/bin"]),
    }
    (block,) = re.findall(r"^```console\n(\$ python -m gpucontainer.*?)^```$", README, re.MULTILINE | re.DOTALL)
    commands = [line.removeprefix("$ ") for line in block.splitlines()]
    assert len(commands) == 3
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(commands)], capture_output=True, text=True, cwd=tmp_path, env=environ, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "hello\nhello\n"), done.stderr


@pytest.mark.usefixtures("clean_after_kill")
def test_a_killed_one_takes_everything_with_it(write: Write) -> None:
    code = "import subprocess; subprocess.Popen(['sleep', '1000']); print('up', flush=True); input()"
    process = subprocess.Popen([write(), "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == "up\n"
    process.kill()
    # The pipe ends with the last that had it open inside.
    assert process.stdout.read() == ""
    assert process.wait(PATIENCE) == -signal.SIGKILL
    process.stdout.close()
    process.stdin.close()
