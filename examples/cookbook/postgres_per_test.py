"""A PostgreSQL for each test, made in the time that others take to clean one up, and gone with the test.

    python postgres_per_test.py [STORE [IMAGE]]

The image needs PostgreSQL 15 of Debian. Needs root, since the server runs as another user inside.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import debian_images as debian

import gpucontainer

BIN = "/usr/lib/postgresql/15/bin"
DATA = "/var/lib/postgresql/test"
SOCKETS = "/tmp"


def prepared(store: gpucontainer.ImageStore, base: gpucontainer.Image) -> gpucontainer.Image:
    """The image with a script that makes a database where there is none and becomes its server."""
    # Durability is what a database for a test does without.
    settings = "-c fsync=off -c synchronous_commit=off -c full_page_writes=off -c listen_addresses=127.0.0.1"
    settings += f" -c unix_socket_directories={SOCKETS}"
    script = f"""#!/bin/sh -e
{BIN}/initdb --auth=trust --no-sync --no-instructions {DATA} >/dev/null
exec {BIN}/postgres -D {DATA} {settings}
"""
    builder = store.build().base(base).file("/usr/local/bin/serve", script.encode(), 0o755)
    return builder.user("postgres").command(["/usr/local/bin/serve"]).commit("cookbook/postgres")


@contextmanager
def database(store: gpucontainer.ImageStore, image: gpucontainer.Image) -> Iterator[gpucontainer.Sandbox]:
    """A server that answers; it and all it wrote are gone after the block, also if the test dies in it."""
    # Its files are in memory: no disk is waited for, and the limit counts them.
    with gpucontainer.Sandbox(
        image,
        store=store,
        writable_memory=512 << 20,
        ports={5432: 0},
        stdout=gpucontainer.DEVNULL,
        stderr=gpucontainer.DEVNULL,
    ) as sandbox:
        end = time.monotonic() + 60
        while sandbox.exec([f"{BIN}/pg_isready", "-q", "-h", SOCKETS]).wait() != 0:
            if sandbox.poll() is not None or time.monotonic() > end:
                sys.exit("the server does not come up")
            time.sleep(0.02)
        yield sandbox


def sql(sandbox: gpucontainer.Sandbox, statement: str) -> str:
    """What `psql` says; a test would connect to the published port with the driver of its choice."""
    command = [f"{BIN}/psql", "-h", SOCKETS, "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statement]
    with sandbox.exec(command, stdout=gpucontainer.PIPE) as process:
        said, _ = process.communicate(timeout=60)
        assert process.wait() == 0
        return said.decode().strip()


store, name = debian.arguments()
image = prepared(store, store.image(name) if name else debian.image(store, "postgresql"))
for test in ("first", "second"):
    before = time.monotonic()
    with database(store, image) as sandbox:
        took = time.monotonic() - before
        # Each test finds an empty database, and could leave what it likes.
        sql(sandbox, "create table things (name text)")
        sql(sandbox, f"insert into things values ('{test}')")
        print(
            f"{test} test: ready after {took:.2f} s, things:", sql(sandbox, "select string_agg(name, ',') from things")
        )
