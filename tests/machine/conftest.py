"""The product as installed in a booted machine: Debian 12 and 13, real systemd, journald, libvirt.

Each machine is made once, and goes through the modules here in the order of their names.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import pytest
from installed import INSTALL, PORT, copy_sources
from lab import EchoServer, Lan, Machine, NamespaceGuest, Suite, root
from lab.addresses import external, internal
from running import Service, mapping

_DOWNLOAD = """
cd /root
/opt/vm-onetoone-nat/bin/pip freeze -q --local --exclude vm-onetoone-nat >wanted
[ ! -s wanted ] || /opt/vm-onetoone-nat/bin/pip download -q -d wheels -r wanted
"""


@pytest.fixture(scope="session")
def roots() -> dict[Suite, Path]:
    """The roots of all releases, those that are missing built side by side."""
    suites: tuple[Suite, ...] = get_args(Suite)
    with ThreadPoolExecutor() as pool:
        return dict(zip(suites, pool.map(root, suites), strict=True))


@pytest.fixture(scope="session", params=get_args(Suite))
def machine(request: pytest.FixtureRequest, roots: dict[Suite, Path]) -> Iterator[Machine]:
    """A machine with the product installed, as an image is built, and booted for the first time."""
    with Lan("machines-lan") as lan, Machine(lan, roots[request.param]) as machine:
        copy_sources(machine)
        machine.prepare(INSTALL)
        # For an installation without a network, later.
        machine.prepare("sh", "-ec", _DOWNLOAD)
        machine.boot()
        yield machine


@pytest.fixture
def lan(machine: Machine) -> Lan:
    """The LAN of the machine."""
    return machine.lan


@pytest.fixture
def service(machine: Machine) -> Iterator[Service]:
    """Started, mapping 1 for as long as its network, mapping 2 for domain `idle`; then stopped."""
    service = Service(machine)
    service.configure(mapping(1), mapping(2, domain="idle"))
    service.systemctl("start")
    service.wait_for(external(1), "active")
    yield service
    service.systemctl("stop")
    assert service.internal_errors() == []


@pytest.fixture
def guest(machine: Machine) -> Iterator[NamespaceGuest]:
    """Guest 1, that answers on PORT."""
    with NamespaceGuest(machine, "guest", internal(1)) as guest, EchoServer(guest, PORT):
        yield guest
