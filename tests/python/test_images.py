"""The image store: build, find, name, import, pull, remove, collect."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import layout
import pytest
import registry

import gpucontainer
from gpucontainer import errors


@pytest.fixture
def store(tmp_path: Path) -> Iterator[gpucontainer.ImageStore]:
    before = len(os.listdir("/proc/self/fd"))
    yield gpucontainer.ImageStore(tmp_path / "store")
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    layout.write(tmp_path / "layout")
    return tmp_path / "layout"


def test_an_image_is_built_and_found(store: gpucontainer.ImageStore, tmp_path: Path) -> None:
    (tmp_path / "hello").write_text("#!/bin/sh\n")
    builder = (
        store.build()
        .copy(tmp_path / "hello", "/bin/hello")
        .file("/etc/motd", b"\x00\xff", 0o600)
        .directory("/tmp", 0o1777)
        .symlink("hello", "/bin/link")
        .env("LANG", "C.UTF-8")
        .command(["/bin/hello", "world"])
        .working_dir("/tmp")
        .label("level", "one")
        .expose(8080)
        .volume("/data")
        .stop_signal("SIGINT")
        .user("1000:1000")
        .created(1_700_000_000)
    )
    image = builder.commit("hello:1")
    assert image.reference.endswith("hello:1")
    assert image.id.startswith("sha256:")
    assert image.manifest_digest.startswith("sha256:")
    config = image.config
    assert (config.command, config.entrypoint) == (["/bin/hello", "world"], [])
    assert "LANG=C.UTF-8" in config.env
    assert (config.user, config.working_dir, config.stop_signal) == ("1000:1000", "/tmp", "SIGINT")
    assert config.labels == {"level": "one"}
    assert config.volumes == ["/data"]
    assert config.exposed_ports[0].startswith("8080")
    assert builder.commit("hello:2").id == image.id

    assert store.image("hello:1").id == image.id
    tagged = store.tag(image, "other:latest")
    assert tagged.id == image.id
    assert len(store.list()) == 3
    derived = store.build().base(image).label("level", "two").commit("hello:3")
    assert derived.config.labels == {"level": "two"}


def test_what_is_not_there_is_said(store: gpucontainer.ImageStore) -> None:
    assert store.get("nothing") is None
    with pytest.raises(errors.ImageNotFoundError, match="nothing"):
        store.image("nothing")
    with pytest.raises(LookupError):
        store.remove("nothing")
    with pytest.raises(errors.InvalidReferenceError, match="UPPER"):
        store.get("UPPER CASE")
    with pytest.raises(FileNotFoundError) as caught:
        store.import_("/no/such/file")
    assert caught.value.filename == "/no/such/file"
    assert isinstance(caught.value, gpucontainer.Error)


def test_removed_images_are_collected(store: gpucontainer.ImageStore) -> None:
    image = store.build().file("/a", b"a").commit("a")
    store.remove("a")
    assert store.collect_garbage() == (0, 0), "a living object keeps its image"
    del image
    layers, blobs = store.collect_garbage()
    assert layers == 1
    assert blobs >= 2


def test_a_layout_is_imported_with_progress(store: gpucontainer.ImageStore, archive: Path) -> None:
    reports: list[gpucontainer.Progress] = []
    image = store.import_(archive, progress=reports.append)
    assert image.reference.endswith("motd:1")
    assert image.config.env == ["A=1"]
    assert {report.phase for report in reports} <= {"importing", "done", "waiting"}
    assert any(report.phase == "done" for report in reports)
    assert "importing" in repr(reports) or "done" in repr(reports)
    assert store.import_(archive, reference="again:1", concurrency=1, max_layer_bytes=1 << 20).id == image.id


def test_raising_from_progress_ends_the_work(store: gpucontainer.ImageStore, archive: Path) -> None:
    def refuse(progress: gpucontainer.Progress) -> None:
        raise KeyError(progress.item)

    with pytest.raises(KeyError, match="sha256"):
        store.import_(archive, progress=refuse)


def test_a_switched_cancel_ends_the_work(store: gpucontainer.ImageStore, archive: Path) -> None:
    cancel = gpucontainer.Cancel()
    assert not cancel.is_cancelled
    cancel.cancel()
    assert cancel.is_cancelled
    with pytest.raises(errors.CancelledError):
        store.import_(archive, cancel=cancel)
    with pytest.raises(errors.CancelledError):
        store.build().file("/a", b"a").commit("a", cancel=cancel)
    assert store.list() == []


class SilentRegistry:
    """Accepts connections and says nothing."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.reference = f"127.0.0.1:{self.socket.getsockname()[1]}/nothing:1"

    def __enter__(self) -> SilentRegistry:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def test_a_pull_honours_signals(store: gpucontainer.ImageStore) -> None:
    # Ctrl-C, and any handler that raises.
    with SilentRegistry() as registry:
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            store.pull(registry.reference, timeout=60)
        timer.join()
        assert time.monotonic() - started < 20


def test_other_threads_go_on_during_a_pull(store: gpucontainer.ImageStore) -> None:
    with SilentRegistry() as registry:
        cancel = gpucontainer.Cancel()
        timer = threading.Timer(0.3, cancel.cancel)
        timer.start()
        with pytest.raises(errors.CancelledError):
            store.pull(registry.reference, cancel=cancel, timeout=60)
        timer.join()


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    if shutil.which(registry.PROGRAM) is None:
        pytest.skip(f"{registry.PROGRAM} is not installed")
    with registry.serving(tmp_path / "registry") as address:
        yield address


def test_an_image_is_pushed_and_comes_back(store: gpucontainer.ImageStore, tmp_path: Path, address: str) -> None:
    image = store.build().file("/a", b"a" * 100_000).command(["/a"]).commit("pushed:1")
    reports: list[gpucontainer.Progress] = []
    digest = store.push(image, f"{address}/team/a:1", anonymous=True, progress=reports.append)
    assert {"pushing", "done"} <= {report.phase for report in reports}
    elsewhere = gpucontainer.ImageStore(tmp_path / "elsewhere")
    pulled = elsewhere.pull(f"{address}/team/a:1", anonymous=True)
    assert (pulled.id, pulled.manifest_digest) == (image.id, digest)
    again: list[str] = []
    assert store.push(image, f"{address}/team/a:2", anonymous=True, progress=lambda r: again.append(r.phase)) == digest
    assert again[-1] == "present"


def test_a_push_honours_signals_and_exceptions(store: gpucontainer.ImageStore, address: str) -> None:
    image = store.build().file("/a", b"a").commit("pushed:1")
    with SilentRegistry() as silent:
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            store.push(image, silent.reference, timeout=60)
        timer.join()

    def wrong(report: gpucontainer.Progress) -> None:
        raise LookupError(report.phase)

    with pytest.raises(LookupError):
        store.push(image, f"{address}/a:1", anonymous=True, progress=wrong)
    assert list((Path(store.path) / "staging").iterdir()) == []


def test_bad_arguments_of_a_push(store: gpucontainer.ImageStore, tmp_path: Path) -> None:
    image = store.build().file("/a", b"a").commit("pushed:1")
    other = gpucontainer.ImageStore(tmp_path / "other").build().file("/a", b"a").commit("pushed:1")
    with pytest.raises(TypeError):
        store.push("pushed:1", "127.0.0.1:1/a:1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="platform"):
        store.push(image, "127.0.0.1:1/a:1", platform="linux/arm64")  # type: ignore[call-arg]
    with pytest.raises(errors.InvalidArgumentError, match="identity_token"):
        store.push(image, "127.0.0.1:1/a:1", user="me")
    with pytest.raises(errors.InvalidArgumentError, match="another store"):
        store.push(other, "127.0.0.1:1/a:1")
    with pytest.raises(errors.InvalidReferenceError):
        store.push(image, f"127.0.0.1:1/a@{image.manifest_digest}")
    with pytest.raises(errors.NetworkError, match="refused"):
        store.push(image, "127.0.0.1:1/a:1", timeout=1)


def test_bad_arguments_of_a_pull(store: gpucontainer.ImageStore) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="identity_token"):
        store.pull("a", user="me")
    with pytest.raises(errors.InvalidArgumentError, match="timeout"):
        store.pull("a", timeout=-1)
    with pytest.raises(errors.InvalidArgumentError):
        store.pull("a", concurrency=0)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(errors.NetworkError, match=str(port)):
        store.pull(f"127.0.0.1:{port}/nothing:1")
