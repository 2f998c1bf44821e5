"""What the installed package is."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata, resources

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


def test_importing_it_costs_little() -> None:
    script = (
        "import sys, time; start = time.perf_counter(); import gpucontainer; "
        "print(time.perf_counter() - start, 'gpucontainer._native' in sys.modules, 'asyncio' in sys.modules)"
    )
    said = [subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout for _ in range(10)]
    seconds, *loaded = min(said).split()
    assert float(seconds) < 0.030
    assert loaded == ["False", "False"]


def test_names_that_do_not_exist_are_said() -> None:
    try:
        _ = gpucontainer.bogus
    except AttributeError as error:
        assert "bogus" in str(error)
    else:
        raise AssertionError("there is no such name")
    assert {"run", "Sandbox", "cdi", "__version__"} <= set(dir(gpucontainer))
