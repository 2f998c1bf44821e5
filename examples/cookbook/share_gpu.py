"""Four workers share one GPU, each with a part of its memory, and a fifth is refused with the reason.

    python share_gpu.py [STORE]

Without a GPU it says so. The account is among all processes of the host, and follows a sandbox to its end, whatever way
that comes; nothing keeps a worker's program from allocating more than it asked for.
"""

import contextlib

import debian_images as debian

import gpucontainer
from gpucontainer import GpuRequest, errors

WORKERS = 4

store, _ = debian.arguments()
gpus = gpucontainer.Host.probe().gpus
if not gpus:
    print("There is no GPU to share here.")
    raise SystemExit
image = (
    store.build()
    .copy("/bin/busybox", "/bin/busybox", follow_links=True)
    .symlink("busybox", "/bin/sh")
    .command(["/bin/sh", "-c", "echo sees /dev/nvidia[0-9]*; read -r line"])
    .commit("cookbook/worker")
)
memory = gpus[0].memory
assert memory is not None
part = memory.total // WORKERS
# By index, so that all want the same one; with a number instead, the least used one is taken first.
request = GpuRequest("0", fraction=part)
with contextlib.ExitStack() as running:
    for number in range(1, WORKERS + 1):
        worker = running.enter_context(
            gpucontainer.Sandbox(image, store=store, gpus=request, stdin=gpucontainer.PIPE, stdout=gpucontainer.PIPE)
        )
        assert worker.stdout is not None
        print(f"worker {number} has {part >> 30} GiB and", worker.stdout.readline().decode().strip())
    try:
        gpucontainer.Sandbox(image, store=store, gpus=request)
    except errors.GpuUnavailableError as error:
        print("worker 5:", error)
# The leases have ended with the workers.
print(len(gpucontainer.GpuAllocator().status().leases), "leases are left")
