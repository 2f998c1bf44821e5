"""The exceptions: every cause of the core has a class, and the classes behave as Python's own."""

from __future__ import annotations

import errno
import pickle
import re
from pathlib import Path

import pytest

from gpucontainer import Error, errors

SOURCE = Path(__file__).parents[2] / "gpucontainer/src/error.rs"


def kinds() -> list[str]:
    body = SOURCE.read_text().split("pub enum ErrorKind {")[1].split("\n}")[0]
    return re.findall(r"^    ([A-Z]\w+),$", body, re.MULTILINE)


def test_every_kind_of_the_core_has_a_class() -> None:
    assert len(kinds()) > 20
    assert list(errors._BY_KIND) == kinds()


@pytest.mark.parametrize("kind", kinds())
def test_each_class_keeps_what_it_was_given(kind: str) -> None:
    error = errors._from_native(kind, "open x: no such file", errno.ENOENT, Path("/x"))
    assert isinstance(error, Error)
    assert type(error).__name__ == kind + "Error"
    assert (str(error), error.errno, error.filename) == ("open x: no such file", errno.ENOENT, "/x")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.errno, copy.filename) == (type(error), str(error), errno.ENOENT, "/x")


def test_classes_of_python_catch_ours() -> None:
    for kind, base in [
        ("NotFound", FileNotFoundError),
        ("PermissionDenied", PermissionError),
        ("TimedOut", TimeoutError),
        ("SystemCall", OSError),
        ("InvalidArgument", ValueError),
    ]:
        with pytest.raises(base):
            raise errors._from_native(kind, "words", None, None)


def test_a_kind_of_a_newer_core_is_still_an_error() -> None:
    assert type(errors._from_native("Brightness", "words", None, None)) is Error
