"""The threads that listen to the kernel: what ends them, and what is missed then."""

import time
from collections.abc import Callable
from errno import EMFILE, ENOBUFS
from typing import Any

import pytest
from lab import wait_for
from vm_onetoone_nat.internal_errors import OCCURRED
from vm_onetoone_nat.kernel.watch import Watch
from vm_onetoone_nat.model.trigger import Kind, Trigger

Listen = Callable[[Watch, Callable[[], None]], None]


@pytest.fixture
def triggers() -> list[Trigger]:
    return []


@pytest.fixture
def watch(triggers: list[Trigger], monkeypatch: pytest.MonkeyPatch) -> Watch:
    monkeypatch.setattr("vm_onetoone_nat.internal_errors.RETRY_SECONDS", (0.01,))
    monkeypatch.setattr("vm_onetoone_nat.kernel.watch._REOPEN_SECONDS", 0.01)
    return Watch(triggers.append, lambda _address, _mac: True, 0)


def listening(errors: list[Exception], begun: list[float], before: bool = False) -> Listen:
    """Listens, and raises each of the errors; `before` it listens, or after it."""

    def listen(_: Watch, listens: Callable[[], None]) -> None:
        if before and errors:
            raise errors.pop(0)
        listens()
        begun.append(time.monotonic())
        if errors:
            raise errors.pop(0)
        time.sleep(3600)

    return listen


def idle(_: Watch, listens: Callable[[], None]) -> None:
    listens()
    time.sleep(3600)


def test_overrun(watch: Watch, triggers: list[Trigger], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel drops notifications, a pass looks for them; that is no internal error."""
    begun: list[float] = []
    overrun = OSError(ENOBUFS, "No buffer space available")
    monkeypatch.setattr(Watch, "_rtnetlink", listening([overrun, overrun], begun))
    monkeypatch.setattr(Watch, "_nftables", idle)
    watch.start()
    wait_for(lambda: len(begun) == 3, 60, "it listens again")
    assert [trigger.kind for trigger in triggers] == [Kind.RTNETLINK_LOST] * 2
    assert OCCURRED.total == 0


@pytest.mark.internal_errors
@pytest.mark.parametrize("error", [KeyError("x"), OSError(EMFILE, "Too many open files")])
@pytest.mark.parametrize("before", [True, False], ids=["before it listens", "after"])
def test_error(
    watch: Watch,
    triggers: list[Trigger],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    before: bool,
) -> None:
    """After any other error it listens again too, and the start does not wait for that.

    The notice that some were lost comes once it listens: a pass before would miss what follows.
    """
    begun: list[float] = []
    monkeypatch.setattr(Watch, "_nftables", listening([error, error], begun, before=before))
    monkeypatch.setattr(Watch, "_rtnetlink", idle)
    watch.start()
    times = 1 if before else 3
    wait_for(lambda: len(begun) == times, 60, "it listens again")
    wait_for(lambda: bool(triggers), 60, "it is told")
    assert {trigger.kind for trigger in triggers} == {Kind.NFTABLES_LOST}
    assert OCCURRED.counts["nftables"] == OCCURRED.total == 2


class Netlink:
    """A socket that receives these, and nothing after them."""

    def __init__(self, *messages: Any, **_: object) -> None:
        self._left = [messages]

    def __enter__(self) -> "Netlink":
        return self

    def __exit__(self, *_: object) -> None: ...

    def bind(self, **_: object) -> None: ...

    def get(self) -> Any:
        if not self._left:
            raise EOFError
        return self._left.pop()


@pytest.mark.internal_errors
def test_message_that_cannot_be_read(
    watch: Watch, triggers: list[Trigger], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs a pass, and those after it are read."""
    messages: tuple[dict[str, str], ...] = (
        {},
        {"event": "RTM_NEWNETCONF"},
        {"event": "RTM_NEWLINK"},
    )
    monkeypatch.setattr("vm_onetoone_nat.kernel.watch.IPRoute", lambda: Netlink(*messages))
    monkeypatch.setattr("vm_onetoone_nat.kernel.watch.nothing_of_our_own", lambda *_: None)
    monkeypatch.setattr("vm_onetoone_nat.kernel.watch._known_neighbours", dict)
    with pytest.raises(EOFError):
        watch._rtnetlink(lambda: None)
    assert [t.kind for t in triggers] == [
        Kind.RTNETLINK_LOST,
        Kind.FORWARDING,
        Kind.RTNETLINK_LOST,
    ]
    assert OCCURRED.counts["rtnetlink"] == 2
