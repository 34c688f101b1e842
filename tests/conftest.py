"""The laptop on its LAN, made once for each test module, and the daemon on it."""

import re
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import get_args

import pytest
from faults import FAULTS
from hypothesis import settings
from lab import Host, Lan, NamespaceGuest
from lab.addresses import external
from lab.requirements import missing
from lab.root import Suite
from running import Daemon, mapping
from vm_onetoone_nat.internal_errors import OCCURRED
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# What is random is the same in each run, and short; at length by `--long`, and never the same.
settings.register_profile("short", max_examples=150, derandomize=True, deadline=None, database=None)
settings.register_profile("long", max_examples=1000, deadline=None, database=None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long", action="store_true", help="many more random cycles, for hours without a hurry"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "internal_errors: causes internal errors of the program")
    config.addinivalue_line("markers", "minutes: takes minutes, and so begins first")
    # What a shell starts in the background ignores it, and so would all that is tested.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    settings.load_profile("long" if config.getoption("long") else "short")
    # A worker of xdist has an input; the process that started it has checked.
    if not hasattr(config, "workerinput") and _has_lab_tests(config):
        lacking = missing()
        if lacking:
            raise pytest.UsageError("the lab needs:\n" + "\n".join(f"  {x}" for x in lacking))


def _has_lab_tests(config: pytest.Config) -> bool:
    """Whether any of the tests that are asked for may need more than the unit and model tiers."""
    folders = [Path(__file__).parent / tier for tier in ("unit", "model")]
    asked = [
        (config.invocation_params.dir / arg.partition("::")[0]).resolve() for arg in config.args
    ]
    return not all(any(path.is_relative_to(folder) for folder in folders) for path in asked)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, so that in the end nobody waits for one process.

    The machines, what takes minutes, then the modules of the lab, the larger ones first.
    """
    tiers = {"machine": 0, "lab": 1}

    def begin(item: pytest.Item) -> tuple[int, bool, int, str]:
        tier = tiers.get(item.path.parent.name, len(tiers))
        size = item.path.stat().st_size if tier == 1 else 0
        return tier, item.get_closest_marker("minutes") is None, -size, item.path.parent.name

    items.sort(key=begin)


class ByMachineOrModule(LoadScopeScheduling):  # type: ignore[misc]
    """All tests of one machine, or of one module, are run by one process, in order.

    The packages are built and installed in machines of their own.
    """

    def _split_scope(self, nodeid: str) -> str:
        module, _, test = nodeid.partition("::")
        if "/machine/" not in module:
            return module
        parameters = re.split(r"[\[\]-]", test)[1:]
        suite = next((suite for suite in get_args(Suite) if suite in parameters), module)
        return f"package {suite}" if module.endswith("/test_package.py") else suite


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByMachineOrModule:
    return ByMachineOrModule(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """What a test has shown of faults goes with its report, from whichever process it is."""
    FAULTS.clear()
    try:
        return (yield)
    finally:
        item.user_properties += [("fault", str(fault)) for fault in FAULTS]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With a failure goes what the daemon has logged."""
    report = yield
    daemon = item.funcargs.get("daemon")
    if report.failed and call.when == "call" and isinstance(daemon, Daemon):
        report.sections.append(("log of the daemon", daemon.log()))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The faults that were caused, as docs/faults.md has them."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    rows = [value for each in reports for name, value in each.user_properties if name == "fault"]
    if rows:
        terminalreporter.section("faults")
        for row in dict.fromkeys(rows):
            terminalreporter.line(str(row))


def causes_internal_errors(request: pytest.FixtureRequest) -> bool:
    """Whether the test is marked as doing so."""
    return request.node.get_closest_marker("internal_errors") is not None


@pytest.fixture(autouse=True)
def no_internal_error(request: pytest.FixtureRequest) -> Iterator[None]:
    """A fault of the program is one of the test, though the program goes on; but for one that is
    marked as causing them.
    """
    OCCURRED.clear()
    yield
    if not causes_internal_errors(request):
        assert {where: n for where, n in OCCURRED.counts.items() if n} == {}


@pytest.fixture(scope="session")
def at_length(pytestconfig: pytest.Config) -> bool:
    """Whether there is time."""
    return bool(pytestconfig.getoption("long"))


@pytest.fixture(scope="module")
def lan() -> Iterator[Lan]:
    with Lan() as lan:
        yield lan


@pytest.fixture(scope="module")
def host(lan: Lan) -> Iterator[Host]:
    with Host(lan) as host:
        host.start_libvirt()
        yield host


@pytest.fixture
def daemon(request: pytest.FixtureRequest, host: Host, tmp_path: Path) -> Iterator[Daemon]:
    """Not started, without a configuration; whatever it left in the kernel goes in the end.

    It must not have said anything of an internal error, unless the test is marked as causing them.
    """
    daemon = Daemon(host, tmp_path)
    yield daemon
    if daemon.process is not None and daemon.process.poll() is None:
        daemon.stop()
    if not daemon.clean:
        done = daemon.command("cleanup")
        assert done.returncode == 0, done.stderr
    if not causes_internal_errors(request):
        assert daemon.internal_errors() == []


@pytest.fixture
def running(daemon: Daemon, guest: NamespaceGuest) -> Daemon:
    """With mapping 1 active, whose guest is that of the test's module."""
    daemon.configure(mapping(1))
    daemon.start()
    daemon.wait_for(external(1), "active")
    return daemon
