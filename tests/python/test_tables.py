"""What a notebook shows."""

from __future__ import annotations

import os
import pickle
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

from starting import NEEDED, Start

import gpucontainer
from gpucontainer import DEVNULL, Image, tables

pytestmark = NEEDED


class Parser(HTMLParser):
    """The cells of tables; every tag must be closed where it should."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()
        assert not self.tags

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert tag in ("table", "tr", "th", "td", "pre", "p"), tag
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.tags.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.tags[-1] in ("th", "td"):
            self.rows[-1][-1] += data


def rows(shown: Any) -> list[list[str]]:
    return Parser(shown._repr_html_()).rows


EVIL = "<script>alert('&')</script>"


def test_cells_are_text() -> None:
    shown = tables.table(("a", EVIL), [(1, EVIL), ("", '"')])
    assert Parser(shown).rows == [["a", EVIL], ["1", EVIL], ["", '"']]
    assert "<script" not in shown
    assert Parser(tables.Text(f"a  {EVIL}")._repr_html_()).rows == []


def test_images(image: Image, tmp_path: Any) -> None:
    store = gpucontainer.ImageStore(tmp_path)
    assert rows(store) == [["reference", "id", "architecture", "created"]]
    made = store.build().file("/x", b"x").commit("test:2")
    _, shown = rows(store)
    assert shown[:2] == [made.reference, made.id]


def test_sandboxes_and_ports(start: Start) -> None:
    sandbox = start(f"exec sleep 1000 # {EVIL}", ports={8080: 0})
    heads, cells, port_heads, port = rows(sandbox)
    assert heads[:3] == ["sandbox", "state", "process"]
    assert cells[:3] == [sandbox.name, "running", str(sandbox.pid)] and EVIL in cells[3]
    ports = sandbox.ports
    assert [port_heads, port] == rows(ports)
    assert port[0] == "8080" and f"127.0.0.1:{ports[0].host_port}" in port[1] and port[2] == "tcp"
    assert isinstance(ports, list)
    sandbox.kill()
    sandbox.wait()
    assert rows(sandbox)[1][1] == "signal 9"
    sandbox.close()
    assert rows(sandbox)[1] == [sandbox.name, "signal 9"]


def test_hosts_and_topology() -> None:
    host = gpucontainer.Host.probe()
    Parser(host._repr_html_())
    topology = host.topology()
    assert isinstance(topology, str) and f"{topology}" == topology
    Parser(topology._repr_html_())


def test_a_timeline_is_drawn(start: Start) -> None:
    timeline = start("exit 0", stdin=DEVNULL).timeline
    assert isinstance(timeline, list) and timeline == list(timeline) and len(timeline) > 1
    assert pickle.loads(pickle.dumps(timeline)) == timeline
    assert timeline._repr_html_() == timeline._repr_svg_()
    for drawn in (
        timeline,
        tables.Timeline([(EVIL, 0.25), ("b", 0.75)]),
        tables.Timeline(),
        tables.Timeline([("a", 0.0)]),
    ):
        root = ElementTree.fromstring(drawn._repr_svg_())
        bars = [one for one in root if one.tag.endswith("rect")]
        names = [one.text for one in root if one.tag.endswith("text")][::2]
        assert names == [name for name, _ in drawn] + ["all"] and len(bars) == len(drawn) + 1
        assert float(root.get("height", "0")) >= float(bars[-1].get("y", "0"))
    bars = [
        one
        for one in ElementTree.fromstring(tables.Timeline([("a", 1.0), ("b", 3.0)])._repr_svg_())
        if one.get("fill") == "#76b900"
    ]
    (a, b) = ({name: float(one.get(name, "0")) for name in ("x", "width")} for one in bars)
    # Each begins where the one before ended, and is as long as it took.
    assert abs(a["x"] + a["width"] - b["x"]) < 0.1 and abs(3 * a["width"] - b["width"]) < 0.1
    assert os.linesep not in tables.Timeline()._repr_svg_()
