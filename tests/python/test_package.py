"""What the installed package is."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import pytest
from starting import NEEDED

import gpucontainer


def test_the_version_is_that_of_the_package() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", gpucontainer.__version__)
    assert metadata.version("gpucontainer") == gpucontainer.__version__


def test_it_is_the_installed_package_and_typed() -> None:
    assert "site-packages" in (gpucontainer.__file__ or "")
    assert resources.files("gpucontainer").joinpath("py.typed").is_file()
    assert resources.files("gpucontainer").joinpath("_native.pyi").is_file()


def test_all_is_there() -> None:
    for name in gpucontainer.__all__:
        assert hasattr(gpucontainer, name)


def test_importing_it_loads_nothing_else() -> None:
    script = (
        "import sys; before = set(sys.modules); import gpucontainer; "
        "print(*sorted(name for name in set(sys.modules) - before if not name.startswith('__')))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.split()
    assert loaded == ["gpucontainer"], "the rest is loaded when it is used"


@NEEDED[0]
@NEEDED[1]
def test_the_first_example_of_the_documentation_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", gpucontainer.__doc__ or "", re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    command = [sys.executable, "-W", "error", "-c", blocks[0]]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (0, "hello\n"), process.stderr


def test_names_that_do_not_exist_are_said() -> None:
    with pytest.raises(AttributeError, match="bogus"):
        getattr(gpucontainer, "bogus")  # noqa: B009 - a type checker knows that it is not there
    assert {"run", "Sandbox", "cdi", "__version__"} <= set(dir(gpucontainer))
