"""Events of the library reach a logger or a callable."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from starting import NEEDED, Start

import gpucontainer

pytestmark = NEEDED


@pytest.fixture(autouse=True)
def nobody_listens_afterwards() -> Iterator[None]:
    yield
    gpucontainer.log_to(None)


def test_a_logger_gets_events(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("sandboxes")
    caplog.set_level(logging.DEBUG, "sandboxes")
    start("exit 0").wait()
    assert not caplog.records
    gpucontainer.log_to(logger, "debug")
    start("exit 0").wait()
    mine = [record for record in caplog.records if "program compiled sandbox=" in record.getMessage()]
    assert [(record.name, record.levelno) for record in mine] == [("sandboxes", logging.DEBUG)]
    caplog.clear()
    gpucontainer.log_to(logger, "error")
    start("exit 0").wait()
    assert not caplog.records


def test_a_callable_gets_levels_and_text(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, str]] = []
    gpucontainer.log_to(lambda level, text: heard.append((level, text)), "debug")
    start("exit 0").wait()
    assert any(level == "debug" and text.startswith("program compiled") for level, text in heard)

    # What it raises reaches nobody who starts a sandbox.
    raised: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", raised.append)

    def fail(level: str, text: str) -> None:
        raise KeyError(text)

    gpucontainer.log_to(fail, "debug")
    assert start("exit 3").wait() == 3
    gpucontainer.log_to(None)
    assert raised and all(one.exc_type is KeyError for one in raised)


def test_wrong_arguments() -> None:
    wrong: Any = "loud"
    with pytest.raises(ValueError, match="level"):
        gpucontainer.log_to(print, wrong)
    wrong = 3
    with pytest.raises(TypeError, match="target"):
        gpucontainer.log_to(wrong)
