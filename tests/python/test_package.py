"""What the installed package is."""

from __future__ import annotations

import re
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
