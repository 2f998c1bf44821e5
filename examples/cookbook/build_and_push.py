"""Builds an image, tries it, pushes it to a registry, and runs it from there as another machine would.

    python build_and_push.py [STORE [IMAGE [REGISTRY]]]

The image needs Python 3, and is what the new one stands on. The registry is `localhost:5000` if none is named, as
`docker-registry serve` of Debian's package of that name has it, or `docker run -p 5000:5000 registry:2`. A login is taken
from where `docker login` and `podman login` leave it.
"""

import sys
import tempfile
from pathlib import Path

import debian_images as debian

import gpucontainer

store, name = debian.arguments()
base = store.image(name) if name else debian.image(store, "python3")
registry = sys.argv[3] if len(sys.argv) > 3 else "localhost:5000"

with tempfile.TemporaryDirectory() as directory:
    # A project on the host, as it comes out of version control.
    project = Path(directory) / "greeter"
    project.mkdir()
    (project / "greet.py").write_text("import os, sys\nprint(os.environ['GREETING'], *sys.argv[1:])\n")
    # The same files give the same image, wherever and whenever it is built.
    image = (
        store.build()
        .base(base)
        .copy(project, "/srv/greeter")
        .env("GREETING", "hello")
        .working_dir("/srv/greeter")
        .entrypoint(["python3", "greet.py"])
        .command(["world"])
        .label("org.opencontainers.image.title", "greeter")
        .commit("cookbook/greeter:1")
    )

tried = gpucontainer.run(image, store=store, capture_output=True, text=True, check=True)
print("built:", tried.stdout.strip())

# What the registry has of the layers is not sent again.
digest = store.push(image, f"{registry}/cookbook/greeter:1")
print("pushed:", digest)

with tempfile.TemporaryDirectory() as directory:
    # Named by its digest it is this image or an error, whatever somebody pushes to the tag later.
    elsewhere = gpucontainer.ImageStore(directory)
    pulled = elsewhere.pull(f"{registry}/cookbook/greeter@{digest}")
    assert pulled.id == image.id
    ran = gpucontainer.run(pulled, ["there"], store=elsewhere, capture_output=True, text=True, check=True)
    print("pulled:", ran.stdout.strip())
