"""Builds an image from the host's busybox, runs a shell in it, and shows what it said.

python hello.py [STORE]
"""

import sys

import gpucontainer

# The user's store, unless told otherwise.
store = gpucontainer.ImageStore(sys.argv[1] if len(sys.argv) > 1 else None)
image = (
    store.build()
    .copy("/bin/busybox", "/bin/busybox", follow_links=True)
    .symlink("busybox", "/bin/sh")
    .command(["/bin/sh", "-c", "echo hello from process $$"])
    .commit("hello")
)

with gpucontainer.Sandbox(image, stdout=gpucontainer.PIPE) as sandbox:
    output = sandbox.communicate(timeout=10)
    print(output.stdout.decode(), end="")
    print("exit code", output.status.code)
    for phase, seconds in sandbox.timeline:
        print(f"{seconds * 1000:7.2f} ms  {phase}")
