"""A program of an old CUDA image on the driver of today, and an image that is too new for it.

    python old_cuda_image.py [STORE]

An image of CUDA brings the toolkit it was built with, and no driver: the driver's own libraries are put in when a sandbox
starts, those of the host it is on. They serve all older toolkits. What an image asks of the driver it says in variables
(`NVIDIA_REQUIRE_CUDA`), which are read before anything starts. Without a GPU the example says so.
"""

import debian_images as debian

import gpucontainer
from gpucontainer import errors

store, _ = debian.arguments()
host = gpucontainer.Host.probe()
if not host.gpus:
    print("There is no GPU here.")
    raise SystemExit
assert host.cuda_version is not None
print(f"the host has driver {host.driver_version}, for CUDA up to {host.cuda_version[0]}.{host.cuda_version[1]}")


def image_of(version: str) -> gpucontainer.Image:
    """What matters here of NVIDIA's image of a version of CUDA."""
    return (
        store.build()
        .copy("/bin/busybox", "/bin/busybox", follow_links=True)
        .symlink("busybox", "/bin/sh")
        .symlink("busybox", "/bin/find")
        .env("CUDA_VERSION", f"{version}.0")
        .env("NVIDIA_DRIVER_CAPABILITIES", "compute,utility")
        .env("NVIDIA_REQUIRE_CUDA", f"cuda>={version}")
        .commit(f"cookbook/cuda:{version}")
    )


# The loader of the image's own programs finds the driver by the usual name.
find = ["find", "/usr", "-name", "libcuda.so.*.*"]
old = gpucontainer.run(image_of("9.0"), find, store=store, gpus=1, capture_output=True, text=True, check=True)
print("an image of CUDA 9.0 has", old.stdout.split()[0].rpartition("/")[2])

try:
    gpucontainer.run(image_of("99.0"), find, store=store, gpus=1)
except errors.Error as error:
    print(f"an image of CUDA 99.0 is refused, {type(error).__name__}: {error}")
