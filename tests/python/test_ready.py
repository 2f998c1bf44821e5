"""Waiting until a program inside serves."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from starting import NEEDED, Start

from gpucontainer import errors

pytestmark = NEEDED


def test_a_server_is_waited_for(start: Start) -> None:
    sandbox = start("sleep 0.2; exec nc -ll -p 8080 -e cat", ports={8080: 0})
    sandbox.wait_ready(8080, timeout=60)
    with sandbox.dial(8080, timeout=30) as connection:
        connection.sendall(b"there and back")
        assert connection.recv(64) == b"there and back"
    sandbox.wait_ready(8080)


def test_the_end_of_the_application_is_an_error_at_once(start: Start) -> None:
    sandbox = start("sleep 0.5; exit 3")
    with pytest.raises(errors.ClosedError, match=r"port 8080.*exit code 3"):
        sandbox.wait_ready(8080, timeout=3600)
    assert sandbox.poll() == 3


def test_the_time_passes(start: Start) -> None:
    sandbox = start("exec sleep 1000")
    started = time.monotonic()
    with pytest.raises(errors.TimedOutError, match=r"8080.*refused"):
        sandbox.wait_ready(8080, timeout=0.6)
    assert time.monotonic() - started >= 0.6
    with pytest.raises(TimeoutError):
        sandbox.wait_ready(8080, timeout=0)
    for bad in (0, -1, 65536):
        with pytest.raises((ValueError, OverflowError)):
            sandbox.wait_ready(bad)
    with pytest.raises(ValueError, match="timeout"):
        sandbox.wait_ready(80, timeout=-1)


def test_signals_end_it_and_other_threads_go_on(start: Start) -> None:
    sandbox = start("exec sleep 1000")
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        sandbox.wait_ready(8080)
    timer.join()
    timer = threading.Timer(0.2, sandbox.kill)
    timer.start()
    with pytest.raises(errors.ClosedError, match="signal 9"):
        sandbox.wait_ready(8080)
    timer.join()
