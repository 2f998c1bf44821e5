"""Progress below a cell of a notebook, with the libraries that draw bars there and without."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import layout
import pytest

pytest.importorskip("jupyter_client")
pytest.importorskip("ipykernel")

VENV = Path(__file__).parents[2] / ".venv"

#: Where `make setup` puts what draws bars, and what that needs in a notebook, so that other tests have none of it.
BARS, WIDGETS = VENV / "bars", VENV / "widgets"

Shown = list[tuple[str, dict[str, Any]]]

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(not (BARS.is_dir() and WIDGETS.is_dir()), reason="rich, tqdm or ipywidgets is not installed"),
]


def shown(directory: Path, *places: Path) -> Shown:
    """What a notebook shows that imports an image."""
    layout.write(directory / "layout")
    words = [sys.executable, str(Path(__file__).with_name("notebook_user.py")), str(directory), *map(str, places)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    return [(kind, content) for kind, content in map(json.loads, done.stdout.splitlines())]


def of_kind(all_shown: Shown, kind: str) -> list[dict[str, Any]]:
    return [content for one, content in all_shown if one == kind]


def models(all_shown: Shown) -> set[str]:
    """The kinds of widgets."""
    return {content["data"]["state"].get("_model_name", "") for content in of_kind(all_shown, "comm_open")}


@pytest.mark.parametrize("places", [(), (BARS,)], ids=["without bars", "with bars that need widgets"])
def test_a_line_goes_below_the_cell(tmp_path: Path, places: tuple[Path, ...]) -> None:
    seen = shown(tmp_path, *places)
    lines = [content["data"]["text/html"] for content in of_kind(seen, "update_display_data")]
    assert any(f"import {tmp_path}/layout: 1 of 1 parts" in line for line in lines) and lines[-1] == "", lines
    # Nobody complains about what is missing.
    assert not of_kind(seen, "stream") and not of_kind(seen, "comm_open")
    (result,) = of_kind(seen, "execute_result")
    assert "motd:1" in result["data"]["text/plain"]


def test_rich_draws_in_a_widget(tmp_path: Path) -> None:
    seen = shown(tmp_path, BARS, WIDGETS)
    assert "OutputModel" in models(seen)
    texts = [content["data"].get("text/plain", "") for content in of_kind(seen, "display_data")]
    assert any("importing" in text and "\u2501" in text for text in texts), texts
    # All of it is gone in the end.
    assert of_kind(seen, "comm_close") and not of_kind(seen, "stream")


def test_tqdm_draws_widgets(tmp_path: Path) -> None:
    only = tmp_path / "only"
    only.mkdir()
    (only / "tqdm").symlink_to(BARS / "tqdm")
    seen = shown(tmp_path, only, WIDGETS)
    assert "FloatProgressModel" in models(seen)
    states = [content["data"].get("state", {}) for content in of_kind(seen, "comm_msg")]
    assert any("importing" in str(state.get("value", "")) for state in states), states
    assert not of_kind(seen, "stream")
