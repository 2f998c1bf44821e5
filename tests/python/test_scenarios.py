"""The scenarios of ``tests/scenarios/scenarios.json``, as Python runs them. Rust and C run the same
(``gpucontainer/tests/scenarios.rs``, ``tests/c/scenarios.c``), and ``tests/scenarios/compare`` sees that all say the same.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import scenario

import gpucontainer
from gpucontainer import errors

TABLE: dict[str, Any] = json.loads((scenario.SCENARIOS / "scenarios.json").read_text())
ROWS: list[dict[str, Any]] = TABLE["rows"]
IS_ROOT = os.geteuid() == 0

pytestmark = [
    pytest.mark.skipif(shutil.which("busybox") is None, reason="busybox is not installed"),
    pytest.mark.skipif(
        not IS_ROOT and not gpucontainer.Host.probe().has("user-namespaces"), reason="no user namespaces"
    ),
]


@pytest.fixture(scope="module")
def record(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """What came of all rows, in the end written where the comparison of languages looks."""
    lines: list[str] = []
    yield lines
    chosen = [item for item in request.session.items if item.name.startswith("test_scenario[")]
    if len(chosen) < len(ROWS):
        # Somebody named rows to run.
        return
    names = {json.loads(line)[0] for line in lines}
    assert names == {row["name"] for row in ROWS}, "every row runs or says why not"
    path = os.environ.get("GPUC_SCENARIOS_RECORD")
    if path:
        Path(path).write_text("".join(line + "\n" for line in lines))


@pytest.mark.parametrize("row", ROWS, ids=[row["name"].replace(" ", "-") for row in ROWS])
def test_scenario(row: dict[str, Any], record: list[str], tmp_path: Path) -> None:
    assert set(row) <= {"name", "needs", "host", "steps"} and set(row.get("needs", [])) <= {"root"}
    if row.get("needs") and not IS_ROOT:
        record.append(json.dumps([row["name"], "skipped", "not root"]))
        pytest.skip("not root")
    if "host" in row and shutil.which("cargo") is None:
        record.append(json.dumps([row["name"], "skipped", "cargo is not installed"]))
        pytest.skip("cargo is not installed")
    gc.collect()
    before = sorted(os.listdir("/proc/self/fd"))
    scene = scenario.Scene(row, TABLE["image"], tmp_path)
    try:
        for line in scene.run():
            record.append(line)
    finally:
        scene.close()
    del scene
    gc.collect()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_the_kinds_of_errors_are_those_of_the_table() -> None:
    names = set(errors._BY_KIND)
    assert all(kind.__name__ == f"{name}Error" for name, kind in errors._BY_KIND.items())
    # What Python cannot meet: a header older than its library, and a bug of the library, which is a RuntimeError.
    assert names == set(TABLE["kinds"]) - {"Unknown", "Internal"}
