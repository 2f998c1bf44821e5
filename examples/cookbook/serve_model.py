"""Serves a model on a port of the host.

    python serve_model.py [STORE [IMAGE]]

The image needs Python 3. The server inside listens on port 8000 of a network of its own, with nothing in it but that
server; the host's port is a socket of this process, which leads there.
"""

import json
import urllib.request

import debian_images as debian

import gpucontainer

# A model of three weights; yours would be loaded from a mount, and have `gpus=1` below.
SERVER = """
import http.server, json

class Model(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = sum(weight * value for weight, value in zip((0.5, -1.0, 2.0), question["values"]))
        body = json.dumps({"answer": answer}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass

server = http.server.HTTPServer(("127.0.0.1", 8000), Model)
server.serve_forever()
"""

store, name = debian.arguments()
image = name or debian.image(store, "python3")

# Port 0 is any free one of the host's, known before the program inside runs.
with gpucontainer.Sandbox(image, ["python3", "-c", SERVER], store=store, ports={8000: 0}, memory=512 << 20) as sandbox:
    sandbox.wait_ready(8000, timeout=30)
    port = sandbox.ports[0]
    url = f"http://{port.host}:{port.host_port}/"
    print("serving on", url)
    question = json.dumps({"values": [2, 1, 3]}).encode()
    with urllib.request.urlopen(url, data=question, timeout=30) as answer:
        print("the model says", json.load(answer)["answer"])
    used = sandbox.stats()["memory"]["current"]
    print(f"it used {used >> 20} MiB")
# Leaving the block has killed the server; the port is free again.
