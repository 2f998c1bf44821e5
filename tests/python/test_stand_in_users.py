"""Software that takes the path of a Python is given a stand-in: multiprocessing, submitit, dask-jobqueue."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import spawn_user

Write = Callable[..., str]

pytest_plugins = ["stand_in_fixtures"]

pytestmark = [
    pytest.mark.usefixtures("clean"),
    pytest.mark.timeout(180),
    # Warnings of those who are tested here are theirs.
    pytest.mark.filterwarnings("default"),
]

PATIENCE = 60.0


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers find the modules of the tests."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)


@pytest.mark.usefixtures("clean_after_kill")
@pytest.mark.parametrize("scenario", spawn_user.SCENARIOS)
def test_multiprocessing(write: Write, scenario: str) -> None:
    # A process of its own: what tracks the resources of processes is a stand-in too, and ends with it.
    words = [sys.executable, spawn_user.__file__, write(), scenario]
    done = subprocess.run(words, capture_output=True, text=True, timeout=2 * PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@pytest.mark.usefixtures("importable")
def test_submitit(write: Write, tmp_path: Path) -> None:
    submitit = pytest.importorskip("submitit")
    executor = submitit.LocalExecutor(tmp_path / "jobs", python=write())
    executor.update_parameters(timeout_min=5)
    jobs = [executor.submit(spawn_user.square, number) for number in (3, 4)]
    assert [job.result() for job in jobs] == [(9, "gpuc-init"), (16, "gpuc-init")]
    failing = executor.submit(spawn_user.square, None)
    with pytest.raises(submitit.core.utils.FailedJobError, match="TypeError"):
        failing.result()
    sleeping = executor.submit(time.sleep, 1000)
    until(lambda: sleeping.paths.stdout.exists() and "Starting" in (sleeping.stdout() or ""))
    sleeping.cancel()
    until(sleeping.done)


@pytest.mark.usefixtures("clean_after_kill", "importable")
def test_dask_jobqueue(write: Write, tmp_path: Path) -> None:
    local = pytest.importorskip("dask_jobqueue.local")
    distributed = pytest.importorskip("distributed")
    cluster = local.LocalCluster(
        cores=1,
        memory="512MiB",
        processes=1,
        # The semaphores of a worker are its own; where others cannot see them, they end with it whatever way that is.
        python=write("--ipc", "private"),
        local_directory=str(tmp_path),
        log_directory=str(tmp_path),
        scheduler_options={"dashboard_address": None, "host": "127.0.0.1"},
    )
    # It ends its jobs by SIGKILL.
    with cluster, distributed.Client(cluster, timeout=PATIENCE) as client:
        cluster.scale(jobs=2)
        client.wait_for_workers(2, timeout=PATIENCE)
        futures = client.map(spawn_user.square, range(4), pure=False)
        assert client.gather(futures) == [(number * number, "gpuc-init") for number in range(4)]


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)
