"""What an image says about itself, and how it comes into a store."""

from __future__ import annotations

import dataclasses

from . import _native


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """What an image says about how to run it."""

    #: The program and its first arguments; empty if the image has none.
    entrypoint: list[str]
    #: The arguments after the entrypoint, or the whole command if there is no entrypoint.
    command: list[str]
    #: ``NAME=VALUE``, in the image's order.
    env: list[str]
    #: ``user``, ``uid``, ``user:group`` and so on; empty means root.
    user: str
    #: Where the program starts; empty means ``/``.
    working_dir: str
    #: ``port`` or ``port/protocol``, sorted.
    exposed_ports: list[str]
    #: Free text by name.
    labels: dict[str, str]
    #: Directories that the image expects to be written to, sorted.
    volumes: list[str]
    #: The signal that asks the program to end, as in ``SIGTERM`` or ``15``.
    stop_signal: str | None
    #: ``amd64``, ``arm64`` and so on.
    architecture: str
    #: ``linux``.
    os: str
    #: When it was made, as in ``2025-01-31T12:00:00Z``.
    created: str | None


def pull_if_absent(image: object, store: _native.ImageStore | None) -> None:
    """Pulls an image that was named and is not in the store, the user's if none is given; what else is no name stays."""
    if isinstance(image, str):
        store = store or _native.ImageStore()
        if store.get(image) is None:
            store.pull(image)
