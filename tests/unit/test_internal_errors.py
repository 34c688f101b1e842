"""Where an unexpected exception ends, and what is said and counted of it."""

import logging
import threading
from collections.abc import Callable

import pytest
from lab import wait_for
from vm_onetoone_nat import internal_errors
from vm_onetoone_nat.errors import KernelError, VmNatError
from vm_onetoone_nat.events import Event
from vm_onetoone_nat.internal_errors import (
    GONE_SECONDS,
    OCCURRED,
    RETRY_SECONDS,
    InternalErrors,
    Work,
    contain,
    thread,
)
from vm_onetoone_nat.kernel.messages.rtnetlink import parse_answer

pytestmark = pytest.mark.internal_errors


def raised(text: str = "here") -> Exception:
    """An exception as it is caught, with a traceback."""
    try:
        raise KeyError(text)
    except KeyError as error:
        return error


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged at error."""
    return [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]


def test_ends_the_block() -> None:
    """The rest of the block is left out, what follows it is not."""
    done = []
    with contain(Work.STATUS):
        done.append(1)
        raise KeyError("x")
    done.append(2)
    assert done == [1, 2]
    assert OCCURRED.counts["status"] == OCCURRED.total == 1


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt()])
def test_ends_of_the_process_pass(error: BaseException) -> None:
    """What ends the process on purpose is no error."""
    with pytest.raises(type(error)), contain(Work.STATUS):
        raise error
    assert OCCURRED.total == 0


def test_what_the_caller_handles_passes() -> None:
    """An error that the caller handles is raised, and is no internal one."""
    with pytest.raises(OSError, match="away"), contain(Work.DOMAIN, handled=OSError):
        raise OSError("away")
    with pytest.raises(KernelError, match=r"^busy$"), contain(Work.WRITE, raises=KernelError):
        raise KernelError("busy")
    assert OCCURRED.total == 0


def test_raised_as_another() -> None:
    """Where the caller handles one class, an internal error becomes that, and is counted."""
    with pytest.raises(KernelError) as caught, contain(Work.WRITE, raises=KernelError):
        raise KeyError("x")
    assert str(caught.value) == "a write to the kernel failed by an internal error"
    assert isinstance(caught.value.__cause__, KeyError)
    assert OCCURRED.counts["write"] == 1


def test_classified_error_that_nobody_handles() -> None:
    """Where nobody handles a classified error it is as unexpected as any other."""
    with contain(Work.TICK):
        raise VmNatError("x")
    assert OCCURRED.counts["tick"] == 1


def test_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged once, not at every repetition; again after it was gone, and each other one."""
    caplog.set_level(logging.DEBUG, "vm_onetoone_nat")
    now = [0.0]
    errors = InternalErrors(lambda: now[0])
    error = raised()
    for _ in range(10):
        errors.add(Work.PASS, error)
        now[0] += RETRY_SECONDS[-1]
    assert len(lines(caplog)) == 1
    errors.add(Work.STATUS, error)
    errors.add(Work.PASS, raised())
    assert len(lines(caplog)) == 2
    now[0] += GONE_SECONDS
    errors.add(Work.PASS, error)
    assert len(lines(caplog)) == 3
    assert errors.counts == {work.label: 0 for work in Work} | {"pass": 12, "status": 1}
    errors.clear()
    assert errors.total == 0


def test_what_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """One line with the work, the exception, and the innermost line of ours; the rest at debug."""
    caplog.set_level(logging.DEBUG, "vm_onetoone_nat")
    with contain(Work.RELOAD):
        internal_errors.retry_seconds("two\nlines")  # type: ignore[arg-type]
    error, traceback = caplog.records
    assert error.getMessage().startswith(
        "internal error in the reload of the configuration: TypeError: "
    )
    assert error.event is Event.INTERNAL_ERROR  # type: ignore[attr-defined]
    assert "\n" not in error.getMessage()
    assert traceback.levelno == logging.DEBUG
    assert traceback.exc_info is not None


def test_place_in_the_program(caplog: pytest.LogCaptureFixture) -> None:
    """The line that is named is the program's own, also where a library raises."""
    with contain(Work.TICK):
        parse_answer(b"x" * 3)
    assert "(kernel/messages/rtnetlink.py, line " in lines(caplog)[0]
    with contain(Work.TICK):
        Work("no such work")
    assert "enum.py, line " in lines(caplog)[1]


class TestThread:
    """A thread that goes on."""

    @pytest.fixture(autouse=True)
    def delays(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """The delays before it is called again, which take no time."""
        waited: list[float] = []
        monkeypatch.setattr("vm_onetoone_nat.internal_errors.time.sleep", waited.append)
        return waited

    def run(self, work: Callable[[], None]) -> threading.Thread:
        started = thread(Work.ARP, work)
        started.start()
        started.join(60)
        return started

    def test_called_again(self, delays: list[float]) -> None:
        """It is called again after each exception, later and later, until it returns."""
        left = list(range(9))

        def work() -> None:
            if left:
                raise KeyError(left.pop())

        ended = self.run(work)
        assert not ended.is_alive()
        assert (ended.name, ended.daemon) == ("arp", True)
        assert delays == [*RETRY_SECONDS, RETRY_SECONDS[-1], RETRY_SECONDS[-1]]
        assert OCCURRED.counts["arp"] == 9

    def test_soon_again_after_it_worked(
        self, delays: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After it has worked for a time it is called again at once."""
        now = [0.0]
        monkeypatch.setattr("vm_onetoone_nat.internal_errors.time.monotonic", lambda: now[0])
        works = iter((0.0, 1.0, GONE_SECONDS + 1, 0.0))

        def work() -> None:
            for seconds in works:
                now[0] += seconds
                raise KeyError(seconds)

        self.run(work)
        assert delays == [RETRY_SECONDS[0], RETRY_SECONDS[1], RETRY_SECONDS[0], RETRY_SECONDS[1]]


def test_many_threads() -> None:
    """None is lost where many occur at once."""

    def work() -> None:
        for _ in range(1000):
            OCCURRED.add(Work.AGENT, error)

    error = raised()
    threads = [threading.Thread(target=work) for _ in range(8)]
    for each in threads:
        each.start()
    wait_for(lambda: not any(each.is_alive() for each in threads), 60, "they are done")
    assert OCCURRED.counts["agent"] == 8000
