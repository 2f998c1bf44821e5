"""Two frameworks that want different versions of the same package, side by side.

    python conflicting_versions.py [STORE [IMAGE]]

The image needs Python 3.11. Each version is one layer on top of it; what they have in common is in the store once.
"""

import concurrent.futures

import debian_images as debian

import gpucontainer

VERSIONS = ("pydantic==1.10.19", "pydantic==2.10.4")
# The same question to both: how a model describes itself was renamed between the two.
SCRIPT = """
import pydantic

class Point(pydantic.BaseModel):
    x: int

describe = getattr(Point, "model_json_schema", None) or Point.schema
print(pydantic.VERSION, "model_json_schema" if hasattr(Point, "model_json_schema") else "schema", describe()["title"])
"""

store, name = debian.arguments()
base = store.image(name) if name else debian.image(store, "python3")
images = [debian.with_python_packages(base, store, version) for version in VERSIONS]


def ask(image: gpucontainer.Image) -> str:
    done = gpucontainer.run(image, ["python3", "-c", SCRIPT], store=store, capture_output=True, text=True, check=True)
    return done.stdout.strip()


# Both at the same time, in one process: a sandbox is a child of it, like any other.
with concurrent.futures.ThreadPoolExecutor() as pool:
    for version, said in zip(VERSIONS, pool.map(ask, images), strict=True):
        print(f"{version}: {said}")
