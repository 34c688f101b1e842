"""What is logged once, and again when it is new."""

import logging

import pytest
from vm_onetoone_nat.service.passlog import PassLog

BUSY, FULL = "connection tracking: busy", "connection tracking: No buffer space available"


def test_work_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """Each reason is logged once until all connections have been flushed, passes or not."""
    log = PassLog()
    with caplog.at_level(logging.ERROR):
        for failure in (BUSY, BUSY, FULL, FULL):
            log.work_failed(failure)
            log.failed(())
        assert caplog.messages == [BUSY, FULL]
        log.work_done()
        log.work_failed(FULL)
        assert caplog.messages == [BUSY, FULL, FULL]
