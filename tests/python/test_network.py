"""Private networks."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpucontainer import PIPE, Image, ImageStore, NetworkMember, PrivateNetwork, Sandbox, errors

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

BUSYBOX = "/bin/busybox"
network = PrivateNetwork("py-consumer", ipv4="10.213.9.0/24", outbound=False)


@pytest.fixture
def image(tmp_path: Path) -> Image:
    builder = ImageStore(tmp_path / "store").build().copy(BUSYBOX, "/bin/busybox", follow_links=True)
    for name in ("sh", "cat", "nc", "sleep"):
        builder = builder.symlink("busybox", f"/bin/{name}")
    return builder.commit("test:1")


def output(sandbox: Sandbox) -> bytes:
    with sandbox:
        return sandbox.communicate(timeout=20).stdout


@root
def test_members_have_addresses_and_names() -> None:
    with network.join("one") as one, network.join("two") as two:
        assert isinstance(one, NetworkMember)
        assert one.addresses[0] == ipaddress.ip_address("10.213.9.2")
        assert two.addresses[0] == ipaddress.ip_address("10.213.9.3")
        assert (one.name, one.gateways) == ("one", [])
        assert "10.213.9.3\ttwo\n" in one.hosts_file.read_text()
        assert os.readlink(f"/proc/self/fd/{one.fileno()}").startswith("net:")
        assert "'one' 10.213.9.2" in repr(one)
        with pytest.raises(errors.SystemCallError, match="ECONNREFUSED"):
            one.dial(80, timeout=1)
        with pytest.raises(errors.AlreadyExistsError):
            network.join("two")
    one.leave()
    with pytest.raises(errors.ClosedError):
        one.fileno()


@root
def test_sandboxes_find_each_other_and_are_joined(image: Image) -> None:
    command = ["sh", "-c", "echo served | nc -l -p 80; exec sleep 1000"]
    with network.join("self") as member, Sandbox(image, command, name="server", network=network) as server:
        assert str(server.addresses[0]) == "10.213.9.3"
        client = ["sh", "-c", "until nc server 80 </dev/null; do sleep 0.1; done"]
        assert output(Sandbox(image, client, network=network, stdout=PIPE)) == b"served\n"
        address = ["cat", "/sys/class/net/eth0/address"]
        assert output(Sandbox(image, address, network=server, stdout=PIPE)) == b"02:67:0a:d5:09:03\n"
        assert output(Sandbox(image, address, network=member.fileno(), stdout=PIPE)) == b"02:67:0a:d5:09:02\n"


#: On a host of its own, whose network it may change.
TRANSLATED = """
import socket, subprocess, sys
from gpucontainer import ImageStore, PortMapping, PrivateNetwork, Sandbox, errors

subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
network = PrivateNetwork("py-nat", ipv4="10.213.10.0/24")
image = ImageStore(sys.argv[1]).image("test:1")
command = ["sh", "-c", "echo served | nc -l -p 80; exec sleep 1000"]
with network.join("first") as first, Sandbox(image, command, network=network) as sandbox:
    gateway = str(first.gateways[0])
    host = sandbox.publish(PortMapping(80, address=gateway, mode="nat"))
    port = sandbox.ports[0]
    assert (port.mode, port.host) == ("nat", gateway), port
    assert f"the kernel leads IPv4 to {sandbox.addresses[0]}" in port.why
    answer = b""
    while not answer:
        try:
            with socket.create_connection(host, timeout=20) as client:
                answer = client.recv(100)
        except ConnectionRefusedError:
            pass
    assert answer == b"served\\n", answer
    port = sandbox.ports[0]
    assert port.accepted >= 1 and port.bytes_in > 0 and port.bytes_out > 0, port
    sandbox.unpublish(*host)
    assert not sandbox.ports
try:
    Sandbox(image, ["true"], ports=[PortMapping(80, mode="nat")])
except errors.InvalidArgumentError as error:
    assert "without a private network" in str(error)
print("done")
"""


@root
def test_the_kernel_leads_clients_into_a_sandbox(image: Image, tmp_path: Path) -> None:
    assert image is not None
    command = ["unshare", "-n", sys.executable, "-c", TRANSLATED, str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr


@root
def test_what_cannot_be_is_refused(image: Image) -> None:
    with pytest.raises(errors.UnsupportedError, match="pasta"):
        Sandbox(image, ["true"], network="outbound")
    with pytest.raises(errors.InvalidArgumentError):
        PrivateNetwork("a/b").join("member")
    with pytest.raises(ValueError, match="octets"):
        PrivateNetwork("net", ipv4="10.0/x").join("member")
