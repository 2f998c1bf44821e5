"""Images of Debian packages, and of Python packages on top, for the examples of the cookbook.

Where you have an image already, give its name to the example instead.
"""

import hashlib
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import gpucontainer


def arguments() -> tuple[gpucontainer.ImageStore, str | None]:
    """The store, by default the user's, and the image that were named on the command line."""
    words = sys.argv[1:]
    return gpucontainer.ImageStore(words[0] if words else None), words[1] if len(words) > 1 else None


def image(store: gpucontainer.ImageStore, *packages: str) -> gpucontainer.Image:
    """An image of Debian with these packages, made by `mmdebstrap` if the store does not have it yet. Needs root."""
    name = "cookbook/debian:" + "-".join(packages)
    found = store.get(name)
    if found is not None:
        return found
    with tempfile.TemporaryDirectory() as directory:
        archive = Path(directory) / "root.tar"
        command = [
            "mmdebstrap",
            "--quiet",
            "--variant=essential",
            f"--include={','.join(packages)}",
            "bookworm",
            str(archive),
        ]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        return of_archive(store, archive, name)


def of_archive(store: gpucontainer.ImageStore, archive: Path, name: str) -> gpucontainer.Image:
    """An image of one layer, with the owners and modes of the archive: an OCI layout around it, imported."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    with tempfile.TemporaryDirectory(dir=archive.parent) as directory:
        blobs = Path(directory) / "blobs" / "sha256"
        blobs.mkdir(parents=True)

        def add(kind: str, source: Path) -> dict[str, object]:
            digest = hashlib.sha256(source.read_bytes()).hexdigest()
            shutil.copy(source, blobs / digest)
            size = source.stat().st_size
            return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": size}

        def add_json(kind: str, value: object) -> dict[str, object]:
            file = Path(directory) / "value"
            file.write_text(json.dumps(value))
            return add(kind, file)

        layer = add("layer.v1.tar", archive)
        environment = ["PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG=C.UTF-8"]
        config = {"architecture": machine, "os": "linux", "config": {"Env": environment}}
        config["rootfs"] = {"type": "layers", "diff_ids": [layer["digest"]]}
        manifest = {"schemaVersion": 2, "config": add_json("config.v1+json", config), "layers": [layer]}
        index = {"schemaVersion": 2, "manifests": [add_json("manifest.v1+json", manifest)]}
        (Path(directory) / "index.json").write_text(json.dumps(index))
        (Path(directory) / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        return store.import_(directory, reference=name)


def with_python_packages(
    base: gpucontainer.Image, store: gpucontainer.ImageStore, *packages: str
) -> gpucontainer.Image:
    """An image with these packages of PyPI besides: a second layer, which holds nothing else."""
    name = "cookbook/python:" + "-".join(packages).replace("==", "-").lower()
    found = store.get(name)
    if found is not None:
        return found
    with tempfile.TemporaryDirectory() as directory:
        # Wheels for the Python of the image, whichever runs this program.
        target = ["--target", directory, "--python-version", "3.11", "--only-binary", ":all:"]
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *target]
        subprocess.run([*pip, *packages], check=True, stdin=subprocess.DEVNULL)
        return store.build().base(base).copy(directory, "/opt/packages").env("PYTHONPATH", "/opt/packages").commit(name)
