"""Each example of the cookbook does what it says, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import registry

import gpucontainer

ROOT = Path(__file__).parents[2]
COOKBOOK = ROOT / "examples" / "cookbook"
BASE = "cookbook/base:1"
sys.path.insert(0, str(COOKBOOK))

import debian_images  # noqa: E402

#: What an example prints, line by line; and whether it takes packages from PyPI, as this machine may not let it.
SAYS = {
    "serve_model.py": [r"serving on http://127\.0\.0\.1:\d+/", r"the model says 6\.0", r"it used \d+ MiB"],
    "conflicting_versions.py": [r"pydantic==1\.10\.19: 1\.10\.19 schema Point", r".*2\.10\.4 model_json_schema Point"],
    "jupyter.py": [r"Jupyter serves \['first\.ipynb'\] on http://127\.0\.0\.1:\d+"],
    "batch_memory_limit.py": [
        r"small: 10 MiB done with a limit of 64 MiB, peak \d+ MiB",
        r"large: killed at its limit of 64 MiB",
        r"large: killed at its limit of 128 MiB",
        r"large: 150 MiB done with a limit of 256 MiB, peak \d+ MiB",
    ],
    "postgres_per_test.py": [
        r"first test: ready after \d+\.\d\d s, things: first",
        r"second test: ready after \d+\.\d\d s, things: second",
    ],
    "untrusted_code.py": [
        r"honest: 45",
        r"greedy: killed at its memory limit",
        r"endless: stopped, .*",
        r"fork bomb: .*",
        r"curious: failed, .*unreachable.*",
        r"vandal: failed, .*Read-only file system.*",
    ],
}
FROM_PYPI = {"conflicting_versions.py", "jupyter.py"}

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="not root")


def remains() -> set[str]:
    """Control groups and mounts of sandboxes, wherever they are."""
    groups = {str(path) for path in Path("/sys/fs/cgroup").glob("*/gpuc*/*") if path.is_dir()}
    mounts = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    return groups | mounts


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> gpucontainer.ImageStore:
    """A store with a Debian that has Python and PostgreSQL, whose files are kept between runs of the tests."""
    mmdebstrap = shutil.which("mmdebstrap")
    if mmdebstrap is None:
        pytest.skip("mmdebstrap is not installed")
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    kept = target / "debian" / "cookbook.tar"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as directory:
            archive = Path(directory) / "root.tar"
            command = [
                mmdebstrap,
                "--quiet",
                "--variant=essential",
                "--include=python3,postgresql",
                "bookworm",
                str(archive),
            ]
            made = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if made.returncode != 0:
                pytest.skip(f"mmdebstrap: {made.stderr.strip().splitlines()[-1]}")
            archive.rename(kept)
    store = gpucontainer.ImageStore(tmp_path_factory.mktemp("cookbook") / "store")
    debian_images.of_archive(store, kept, BASE)
    return store


def run(example: str, *arguments: str, **environment: str) -> list[str]:
    before = remains()
    process = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", COOKBOOK / example, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    if example in FROM_PYPI and "No matching distribution" in process.stderr:
        pytest.skip("PyPI cannot be reached")
    assert process.returncode == 0, process.stderr
    assert remains() <= before, "left behind"
    return process.stdout.splitlines()


@needs_root
@pytest.mark.timeout(600)
@pytest.mark.parametrize("example", sorted(SAYS))
def test_an_example(example: str, store: gpucontainer.ImageStore) -> None:
    image = BASE
    if example == "jupyter.py":
        # What it would make itself on a base of its own.
        try:
            jupyter = debian_images.with_python_packages(store.image(BASE), store, "jupyter-server==2.14.2")
        except subprocess.CalledProcessError:
            pytest.skip("PyPI cannot be reached")
        image = jupyter.reference
    lines = run(example, str(store.path), image)
    assert len(lines) == len(SAYS[example]), lines
    for line, pattern in zip(lines, SAYS[example], strict=True):
        assert re.fullmatch(pattern, line), lines


@needs_root
@pytest.mark.timeout(300)
def test_an_image_is_pushed_and_runs_elsewhere(store: gpucontainer.ImageStore, tmp_path: Path) -> None:
    if shutil.which(registry.PROGRAM) is None:
        pytest.skip(f"{registry.PROGRAM} is not installed")
    with registry.serving(tmp_path / "registry") as address:
        lines = run("build_and_push.py", str(store.path), BASE, address)
        # Again, and nothing of it is new.
        assert run("build_and_push.py", str(store.path), BASE, address) == lines
    assert lines[::2] == ["built: hello world", "pulled: hello there"]
    assert re.fullmatch(r"pushed: sha256:[0-9a-f]{64}", lines[1])


@needs_root
def test_workers_share_a_gpu(tmp_path: Path) -> None:
    if shutil.which("cargo") is None:
        pytest.skip("cargo is not installed")
    machine = tmp_path / "machine"
    subprocess.run([ROOT / "tests/fake-host", "dgx-a100", machine], check=True, stdin=subprocess.DEVNULL)
    lines = run("share_gpu.py", str(tmp_path / "store"), GPUCONTAINER_DRIVER_ROOT=str(machine))
    same = {line.partition(" has ")[2] for line in lines[:4]}
    assert len(same) == 1 and re.fullmatch(r"10 GiB and sees /dev/nvidia\d", same.pop()), lines
    assert lines[4].startswith("worker 5: ") and lines[-1] == "0 leases are left", lines


@needs_root
def test_an_old_image_runs_on_a_new_driver(tmp_path: Path) -> None:
    if shutil.which("cargo") is None:
        pytest.skip("cargo is not installed")
    machine = tmp_path / "machine"
    subprocess.run([ROOT / "tests/fake-host", "dgx-a100", machine], check=True, stdin=subprocess.DEVNULL)
    lines = run("old_cuda_image.py", str(tmp_path / "store"), GPUCONTAINER_DRIVER_ROOT=str(machine))
    version = "550.163.01"
    assert re.fullmatch(rf"the host has driver {re.escape(version)}, for CUDA up to 12\.\d+", lines[0]), lines
    assert lines[1] == f"an image of CUDA 9.0 has libcuda.so.{version}", lines
    assert re.match(r"an image of CUDA 99\.0 is refused, GpuUnavailableError: .*cuda>=99\.0", lines[2]), lines
    assert len(lines) == 3, lines


def test_all_examples_are_in_the_index() -> None:
    index = (ROOT / "examples" / "README.md").read_text()
    files = [path for path in (ROOT / "examples").rglob("*") if path.suffix in {".py", ".rs", ".c", ".cpp"}]
    assert files
    for path in files:
        assert f"({path.relative_to(ROOT / 'examples')})" in index, path
