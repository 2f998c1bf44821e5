"""A Jupyter server whose notebooks live on the host, and nothing else of it does.

    python jupyter.py [STORE [IMAGE]]

The image needs Python 3.11 and jupyter-server. This stops as soon as the server has answered; to work with it, wait for
your Enter key instead.
"""

import json
import secrets
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import debian_images as debian

import gpucontainer
from gpucontainer import Mount

store, name = debian.arguments()
if name:
    image = store.image(name)
else:
    image = debian.with_python_packages(debian.image(store, "python3"), store, "jupyter-server==2.14.2")

token = secrets.token_hex()
with tempfile.TemporaryDirectory() as directory:
    notebooks = Path(directory)
    (notebooks / "first.ipynb").write_text('{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}')
    command = ["python3", "-m", "jupyter_server", "--allow-root", "--no-browser", "--ip=127.0.0.1", "--port=8888"]
    with gpucontainer.Sandbox(
        image,
        command,
        store=store,
        env={"JUPYTER_TOKEN": token, "HOME": "/tmp"},
        cwd="/notebooks",
        mounts=[Mount.bind(notebooks, "/notebooks")],
        ports={8888: 0},
        memory=2 << 30,
        stderr=gpucontainer.DEVNULL,
    ) as sandbox:
        port = sandbox.ports[0]
        url = f"http://{port.host}:{port.host_port}"
        request = urllib.request.Request(f"{url}/api/contents", headers={"Authorization": f"token {token}"})
        while True:
            # Raises at once if the server ends instead, with how it did.
            sandbox.wait_ready(8888, timeout=120)
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    names = [entry["name"] for entry in json.load(answer)["content"]]
                break
            except urllib.error.URLError as error:
                # Jupyter listens for a moment to see whether it may, and then once more to serve.
                if not isinstance(error.reason, ConnectionError):
                    raise
        print("Jupyter serves", names, "on", url)
