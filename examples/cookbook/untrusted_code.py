"""Runs programs that nobody has read, and says what became of each.

    python untrusted_code.py [STORE [IMAGE]]

The image needs Python 3. Needs root for the limits, or a control group that was delegated to the user.
"""

import debian_images as debian

import gpucontainer
from gpucontainer import Limits, errors

PROGRAMS = {
    "honest": "print(sum(range(10)))",
    "greedy": "data = []\nwhile True: data.append(bytes(1 << 20))",
    "endless": "while True: pass",
    "fork bomb": "import os\nwhile True: os.fork()",
    "curious": "import urllib.request\nurllib.request.urlopen('http://192.0.2.1/', timeout=5)",
    "vandal": "open('/usr/bin/python3', 'w')",
}

store, name = debian.arguments()
image = name or debian.image(store, "python3")

for title, program in PROGRAMS.items():
    try:
        done = gpucontainer.run(
            image,
            # From standard input, so that no length of it is too long for a command line.
            ["python3", "-I", "-"],
            store=store,
            input=program,
            timeout=3,
            # Nobody's user and no capability: being root inside helps with nothing here.
            user="65534:65534",
            drop_capabilities=["ALL"],
            # No network is the default. Nothing can be written but in a small place in memory.
            read_only=True,
            mounts=[gpucontainer.Mount.tmpfs("/tmp", size=16 << 20, executable=False)],
            limits=Limits(memory=128 << 20, swap=0, cpus=1, pids=32),
            capture_output=True,
            text=True,
        )
    except errors.TimeoutExpiredError as error:
        print(f"{title}: stopped, {error}"[:100])
        continue
    if done.oom_killed:
        print(f"{title}: killed at its memory limit")
    elif done.returncode != 0:
        print(f"{title}: failed, {done.stderr.strip().splitlines()[-1]}")
    else:
        print(f"{title}: {done.stdout.strip()}")
