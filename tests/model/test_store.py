"""The contract of the store side of a pass, on the fake and on the file."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest
from fakes import FakeStore
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lab.addresses import external
from vm_onetoone_nat.decide.sides import StoreSide
from vm_onetoone_nat.errors import StoreError
from vm_onetoone_nat.model.mapping import Origin
from vm_onetoone_nat.model.store import Allocation, Stored
from vm_onetoone_nat.store.file import FileStore


class World(Protocol):
    """A store and what happens to it from outside."""

    @property
    def store(self) -> StoreSide: ...

    def restart(self) -> None:
        """The daemon's process is another one."""

    def fill(self, full: bool) -> None:
        """Nothing can be written, or everything again; what is written stays readable."""

    def spoil(self) -> None:
        """What is written can no longer be read."""


class Fake:
    def __init__(self, _directory: Path) -> None:
        self.store = FakeStore()

    def restart(self) -> None:
        self.store.forget()

    def fill(self, full: bool) -> None:
        self.store.full = full

    def spoil(self) -> None:
        self.store.written = frozenset()


class File:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.store = FileStore(directory)

    def restart(self) -> None:
        self.store = FileStore(self._directory)

    def fill(self, full: bool) -> None:
        # Root may write into any directory, but nobody replaces a directory by opening it.
        obstacle = self._directory / "allocations.new"
        if full:
            obstacle.mkdir(parents=True, exist_ok=True)
        elif obstacle.exists():
            obstacle.rmdir()

    def spoil(self) -> None:
        path = self._directory / "allocations.json"
        if path.exists():
            path.write_text("{")


@pytest.fixture(params=[Fake, File], ids=["fake", "file"])
def make(request: pytest.FixtureRequest) -> Callable[[Path], World]:
    kind: Callable[[Path], World] = request.param
    return kind


@pytest.fixture
def world(make: Callable[[Path], World], tmp_path: Path) -> World:
    return make(tmp_path / "state")


def allocation(n: int, origin: Origin = Origin.POOL) -> Allocation:
    return Allocation(external(n), f"00000000-0000-4000-8000-{n:012}", "default", origin)


ONE = frozenset({allocation(1)})
TWO = frozenset({allocation(1), allocation(2, Origin.METADATA)})


def test_empty(world: World) -> None:
    """Before anything was recorded nothing is known, and nothing waits to be written."""
    assert world.store.observe() == Stored()


def test_remembered(world: World) -> None:
    """What was recorded last is known whole, also to the next process."""
    for allocations in (TWO, ONE, frozenset[Allocation](), TWO):
        world.store.record(allocations)
        assert world.store.observe() == Stored(allocations)
        world.restart()
        assert world.store.observe() == Stored(allocations)


def test_full(world: World) -> None:
    """What cannot be written is known to this process, which says that it is not recorded.

    The next process knows what was written before.
    """
    world.store.record(ONE)
    world.fill(True)
    with pytest.raises(StoreError):
        world.store.record(TWO)
    for _ in range(2):
        assert world.store.observe() == Stored(TWO, recorded=False)
    world.restart()
    assert world.store.observe() == Stored(ONE)


def test_writable_again(world: World) -> None:
    """The same is recorded as soon as it can be written."""
    world.fill(True)
    for _ in range(2):
        with pytest.raises(StoreError):
            world.store.record(ONE)
    world.fill(False)
    assert world.store.observe() == Stored(ONE, recorded=False)
    world.store.record(ONE)
    assert world.store.observe() == Stored(ONE)


def test_spoiled(world: World) -> None:
    """What cannot be read counts as nothing, and is replaced by the next record."""
    world.store.record(TWO)
    world.spoil()
    assert world.store.observe() == Stored()
    world.store.record(ONE)
    assert world.store.observe() == Stored(ONE)


ALLOCATIONS = st.frozensets(
    st.builds(allocation, st.integers(1, 9), st.sampled_from([Origin.POOL, Origin.METADATA])),
    max_size=4,
).filter(lambda found: len({a.external for a in found}) == len(found))
STEPS = st.lists(
    st.one_of(ALLOCATIONS, st.sampled_from(["restart", "fill", "empty", "spoil"])), max_size=12
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_fake_and_file_agree(
    steps: list[frozenset[Allocation] | str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """After any sequence of events fake and file have the same, and fail at the same time."""
    directory = tmp_path_factory.mktemp("store")
    worlds: tuple[World, ...] = (Fake(directory), File(directory))
    for step in steps:
        failed = []
        for world in worlds:
            match step:
                case "restart":
                    world.restart()
                case "fill" | "empty":
                    world.fill(step == "fill")
                case "spoil":
                    world.spoil()
                case frozenset():
                    try:
                        world.store.record(step)
                    except StoreError:
                        failed.append(world)
        assert len(failed) in (0, len(worlds))
        fake, file = worlds
        assert fake.store.observe() == file.store.observe()
