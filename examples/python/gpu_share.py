"""One machine, four instances of one image, two GPUs each: the pairs that are connected best.

python gpu_share.py [STORE]

It takes real leases, so it fits in beside whatever else asks an allocator on this machine. Without a GPU it says so.
"""

import contextlib
import sys

import gpucontainer
from gpucontainer import PIPE, errors

INSTANCES = 4
GPUS_EACH = 2

# What an instance does: say in one line what it sees, and stay until its input ends.
SCRIPT = """for node in /dev/nvidia[0-9]*; do nodes="$nodes ${node#/dev/}"; done
echo "sees$nodes"
read -r line"""


def main() -> None:
    if not gpucontainer.Host.probe().gpus:
        print("There are no GPUs to share here.")
        return
    print(gpucontainer.Host.topology())
    store = gpucontainer.ImageStore(sys.argv[1] if len(sys.argv) > 1 else None)
    image = (
        store.build()
        .copy("/bin/busybox", "/bin/busybox", follow_links=True)
        .symlink("busybox", "/bin/sh")
        .command(["/bin/sh", "-c", SCRIPT])
        .commit("gpu-share")
    )
    allocator = gpucontainer.GpuAllocator()
    with contextlib.ExitStack() as running:
        for number in range(1, INSTANCES + 1):
            try:
                sandbox = running.enter_context(gpucontainer.Sandbox(image, gpus=GPUS_EACH, stdin=PIPE, stdout=PIPE))
            except errors.GpuUnavailableError as error:
                # All GPUs are somebody's; a start could also wait for them, with gpu_timeout.
                print(f"instance {number}: {error}")
                break
            lease = sandbox.gpu_lease
            assert lease is not None and sandbox.stdout is not None
            print(f"instance {number}: {lease.description}")
            print(f"  is {' '.join(lease.gpus)}")
            print(f"  {sandbox.stdout.readline().decode().strip()}")
            lease.close()  # the sandbox has it still
        print(f"\n{allocator.status()}")


main()
