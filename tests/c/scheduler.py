"""Feeds jobs to the scheduler of examples/c: `scheduler.py PROGRAM STORE`, where GPUCONTAINER_DRIVER_ROOT is a DGX A100."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

PROGRAM, STORE = sys.argv[1:]
GPUS = 8


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [PROGRAM, STORE, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(jobs: list[str], *arguments: str) -> tuple[int, list[str]]:
    process = start(*arguments)
    output, _ = process.communicate("".join(f"{job}\n" for job in jobs), timeout=100)
    return process.returncode, output.splitlines()


def until(what: str, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def sleepers(mark: str) -> list[str]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if file.read().split(b"\0")[:2] == [b"sleep", mark.encode()]:
                    found.append(pid)
        except OSError:
            pass
    return found


def groups_of(pid: str) -> list[str]:
    """The names of the control groups that are a sandbox's own."""
    with open(f"/proc/{pid}/cgroup") as file:
        names = [line.rstrip().rsplit("/", 1)[1] for line in file]
    return [name for name in names if "s-" in name]


def directories(group: str) -> list[str]:
    return [path for path, names, _ in os.walk("/sys/fs/cgroup") if group in names]


def await_lines(process: subprocess.Popen[str], pattern: str, count: int) -> list[str]:
    lines: list[str] = []
    assert process.stdout is not None
    while len([line for line in lines if re.search(pattern, line)]) < count:
        line = process.stdout.readline()
        assert line, lines
        lines.append(line.rstrip())
    return lines


def each_has_gpus_of_its_own() -> None:
    wanted = [1 + number % 4 for number in range(24)]
    script = "set -- /dev/nvidia[0-9]*; echo saw $#; sleep 0.2"
    code, lines = run([f"gpus={count} {script}" for count in wanted], "6")
    assert code == 0 and lines[-1] == "24 jobs: 24 ended well, 0 failed, 0 cancelled", lines
    assert sorted(line for line in lines if line.startswith("saw")) == sorted(f"saw {count}" for count in wanted), lines
    running: dict[str, set[str]] = {}
    most = 0
    for line in lines:
        if begun := re.fullmatch(r"job (\d+) started as \d+((?: GPU-\S+)*)", line):
            gpus = set(begun[2].split())
            assert len(gpus) == wanted[int(begun[1]) - 1], line
            running[begun[1]] = gpus
            held = [gpu for of_job in running.values() for gpu in of_job]
            assert len(held) == len(set(held)) <= GPUS, lines
            assert len(running) <= 6, lines
            most = max(most, len(running))
        elif over := re.fullmatch(r"job (\d+) ended with code 0", line):
            del running[over[1]]
    assert not running and most > 1, lines


def outcomes_are_told() -> None:
    jobs = [
        "exit 3",
        "kill -9 $$",
        "# a comment",
        "memory=8 tail /dev/zero",
        "seconds=1 sleep 1000",
        "gpus=9 true",
        "gpus=many true",
        "cpus=0.5 true",
        "true",
    ]
    code, lines = run(jobs, "3")
    said = "\n".join(sorted(line for line in lines if "started" not in line))
    expected = [
        r"job 1 ended with code 3",
        r"job 2 was killed by signal 9",
        r"job 3 was killed by signal 9, at its memory limit",
        r"job 4 has used up its time",
        r"job 4 was killed by signal 9",
        r"job 5 failed: .*9 GPUs.*",
        r"job 6 failed: it makes no sense",
        r"job 7 ended with code 0",
        r"job 8 ended with code 0",
    ]
    assert code == 1 and re.fullmatch("8 jobs: 2 ended well, 6 failed, 0 cancelled\n" + "\n".join(expected), said), said


def it_stops_when_it_is_asked() -> None:
    for asked in (signal.SIGTERM, signal.SIGINT):
        process = start("2")
        assert process.stdin is not None
        # One that ends when it is asked, and one that does not; those after them wait for ever.
        process.stdin.write("trap 'echo asked; exit 0' TERM; echo up; while :; do sleep 0.05; done\n")
        process.stdin.write("trap '' TERM; echo up; sleep 7654\n")
        process.stdin.write("gpus=8 true\ntrue\n")
        process.stdin.flush()
        await_lines(process, "^up$", 2)
        process.send_signal(asked)
        output = process.communicate(timeout=60)[0].splitlines()
        assert process.returncode == 1 and "asked" in output, output
        assert output[-1] == "4 jobs: 1 ended well, 0 failed, 3 cancelled", output
        assert not sleepers("7654")


def nothing_is_left_of_one_that_is_killed() -> None:
    process = start("4")
    assert process.stdin is not None
    process.stdin.write("gpus=4 sleep 6543\n" * 3)
    process.stdin.flush()
    await_lines(process, "started", 2)
    until("they sleep", lambda: len(sleepers("6543")) == 2)
    groups = {name for pid in sleepers("6543") for name in groups_of(pid)}
    assert groups and all(directories(name) for name in groups), groups
    process.kill()
    process.wait()
    until("they are gone", lambda: not sleepers("6543"))
    # Its GPUs are free, and the next one removes what only it knew of.
    code, lines = run(["gpus=8 true"])
    assert code == 0, lines
    assert not [name for name in groups if directories(name)], groups
    scratch = os.path.join(STORE, "scratch")
    assert not os.path.isdir(scratch) or not [name for name in os.listdir(scratch) if not name.startswith(".")], scratch


for test in (
    each_has_gpus_of_its_own,
    outcomes_are_told,
    it_stops_when_it_is_asked,
    nothing_is_left_of_one_that_is_killed,
):
    print(test.__name__, flush=True)
    test()
