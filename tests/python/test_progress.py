"""Progress of long work, which shows itself to somebody who looks."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import sys
import termios
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import layout
import pytest

import gpucontainer
from gpucontainer import bars, progress

SCRIPT = """
import sys, gpucontainer
store = gpucontainer.ImageStore(sys.argv[1])
store.import_(sys.argv[2], **eval(sys.argv[3]))
"""


#: Where `make setup` puts rich and tqdm, so that other tests have neither.
BARS = Path(__file__).parents[2] / ".venv" / "bars"


def seen_in_a_terminal(tmp_path: Path, options: str, before: str = "", columns: int = 100) -> str:
    """What a process that imports an image writes to its standard error, which is a terminal."""
    layout.write(tmp_path / "layout")
    child, master = pty.fork()
    if child == 0:
        arguments = [sys.executable, "-c", SCRIPT, str(tmp_path / "store"), str(tmp_path / "layout"), options]
        arguments[2] = before + SCRIPT
        try:
            # In a terminal of no size there is nothing to draw on.
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
            os.execv(sys.executable, arguments)
        finally:
            os._exit(127)
    seen = b""
    try:
        while data := os.read(master, 4096):
            seen += data
    except OSError:
        # The other side is closed.
        pass
    os.close(master)
    assert os.waitpid(child, 0)[1] == 0, seen
    return seen.decode()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_terminal_shows_a_line_that_goes_again(tmp_path: Path) -> None:
    seen = seen_in_a_terminal(tmp_path, "{}")
    assert f"\rimport {tmp_path}"[:70] in seen.replace("\x1b[K", "")
    assert seen.endswith("\r\x1b[K") and "\n" not in seen


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("library", ["rich", "tqdm"])
def test_bars_are_those_of_a_library_that_is_there(tmp_path: Path, library: str) -> None:
    if not (BARS / library).is_dir():
        pytest.skip(f"{library} is not installed")
    before = f"import sys; sys.path.append({str(BARS)!r})\n"
    if library == "tqdm":
        before += "sys.modules['rich.console'] = None\n"
    # Its name is longer than the line.
    place = tmp_path / ("deep" * 20)
    place.mkdir()
    seen = seen_in_a_terminal(place, "{}", before, columns=80)
    assert gpucontainer.ImageStore(place / "store").image("motd:1")
    assert "import /" in seen and "...deepdeepdeep/layout" in seen, seen
    assert re.search(r"[0-9a-f]{12} (importing|done)", seen), seen
    assert ("\u2501" in seen) == (library == "rich") and ("%|" in seen or "B/s" in seen) == (library == "tqdm"), seen
    # Where the cursor is in the end, nothing is.
    assert seen.rstrip("\r\n").endswith(("\x1b[2K", "\x1b[?25h", "\r", " ", "\x1b[A")), seen[-80:]


def test_a_library_that_fails_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def show(self, _: object) -> None:
            raise ArithmeticError("no room to draw")

        def close(self) -> None:
            raise ArithmeticError("nor here")

    monkeypatch.setattr(bars, "installed", lambda *_: Broken())
    monkeypatch.setattr(progress, "_terminal", lambda: print)
    layout.write(tmp_path / "layout")
    gpucontainer.ImageStore(tmp_path / "store").import_(tmp_path / "layout")
    assert [record.getMessage() for record in caplog.records] == [
        "progress is shown no more: ArithmeticError: no room to draw"
    ]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("options", ["{'progress': False}", "{'progress': None}", "{'progress': lambda _: None}"])
def test_it_can_be_switched_off(tmp_path: Path, options: str) -> None:
    assert seen_in_a_terminal(tmp_path, options) == ""


def test_who_pulls_an_image_that_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = gpucontainer.ImageStore(tmp_path / "store")
    begins = {}
    for watched in (False, True):
        monkeypatch.setattr("gpucontainer.sandbox.is_watched", lambda watched=watched: watched)
        with pytest.raises(gpucontainer.Error) as raised:
            gpucontainer.run("127.0.0.1:1/a:1", store=store, name="first")
        begins[watched] = str(raised.value).partition(":")[0]
    # Where somebody looks the pull comes first, with its progress; elsewhere it is a part of the start.
    assert begins == {False: "start sandbox first", True: "pull image 127.0.0.1"}


def test_nobody_looks(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    layout.write(tmp_path / "layout")
    store = gpucontainer.ImageStore(tmp_path / "store")
    store.import_(tmp_path / "layout")
    store.import_(tmp_path / "layout", progress=True)
    assert capfd.readouterr() == ("", "")
    for wrong in (3, "yes"):
        with pytest.raises(TypeError, match="progress"):
            store.import_(tmp_path / "layout", progress=wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="progress"):
            store.pull("127.0.0.1:1/a:1", progress=wrong)  # type: ignore[arg-type]


def report(item: str, phase: str, done: int, total: int | None) -> Any:
    return SimpleNamespace(item=item, phase=phase, bytes=done, total=total)


def test_parts_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_PAUSE", 0.0)
    lines: list[str] = []
    line = progress.Line("pull a", lines.append)
    display = progress.Display(line)
    display(report("a", "pulling", 1 << 20, 2 << 20))
    display(report("b", "present", 0, 1 << 20))
    display(report("b", "pulling", 0, None))
    line.close()
    assert lines == [
        "pull a: 0 of 1 parts, 1.0 MiB of 2.0 MiB",
        "pull a: 1 of 2 parts, 1.0 MiB of 3.0 MiB",
        "pull a: 0 of 2 parts, 1.0 MiB",
        "",
    ]
    threads = [threading.Thread(target=display, args=(report(str(n), "done", n, n),)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lines[-1].startswith("pull a: 20 of 22 parts")


def test_a_terminal_that_is_gone_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def isatty(self) -> bool:
            return True

        def write(self, _: str) -> int:
            raise OSError("it is gone")

    monkeypatch.setattr(sys, "stderr", Gone())
    display = progress.choose(True, "pull a")
    display(report("a", "pulling", 1, 2))
    progress.finish(display)
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    assert progress.choose(True, "pull a") is None
    monkeypatch.setattr(sys, "stderr", None)
    assert progress.choose(True, "pull a") is None


def test_a_notebook_shows_it_below_the_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    handle = SimpleNamespace(update=shown.append)
    display = SimpleNamespace(HTML=str, display=lambda *_, **__: handle)
    notebook = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=1), display=display)
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    reporter = progress.choose(True, "pull <a>")
    reporter(report("a", "pulling", 1, 2))
    progress.finish(reporter)
    assert shown == ["<pre>pull &lt;a&gt;: 0 of 1 parts, 1 B of 2 B</pre>", ""]
