"""GPU containers as a function call."""

from ._native import __version__
from .errors import Error

__all__ = ["Error", "__version__"]
