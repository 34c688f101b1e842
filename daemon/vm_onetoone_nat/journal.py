"""Log output: native journal entries with fields, or text on standard error."""

import logging
import os
import sys
from typing import Any

from vm_onetoone_nat.events import Event

IDENTIFIER = "vm-onetoone-nat"

_LEVELS = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}


def configure(verbose: bool) -> None:
    """Set up logging to the journal or to standard error. Call it once, from `cli`."""
    handler: logging.Handler
    if to_journal():
        handler = _JournalHandler()
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_TextFormatter())
    root = logging.getLogger("vm_onetoone_nat")
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if verbose else logging.INFO)


def to_journal() -> bool:
    """Whether standard error is connected to the journal: $JOURNAL_STREAM (systemd.exec(5))."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        stream = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(stream.st_dev), str(stream.st_ino))


def entry(event: Event, **fields: object) -> dict[str, Any]:
    """The `extra` of a log call: the kind of the entry, and its VMNAT_ fields.

    Fields that are None are left out.
    """
    present = {f"VMNAT_{k.upper()}": str(v) for k, v in fields.items() if v is not None}
    return {"event": event, "fields": present}


def encodable(text: str) -> str:
    """The text with escapes in place of what UTF-8 cannot encode.

    Names from the kernel may be any bytes: those that are not UTF-8 are kept with surrogateescape.
    """
    return text.encode(errors="backslashreplace").decode()


class _TextFormatter(logging.Formatter):
    """One line for a terminal."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s: %(message)s")


class _JournalHandler(logging.Handler):
    """Native journal entries through systemd-python."""

    def __init__(self) -> None:
        super().__init__()
        # Here, since only a process under systemd needs the library.
        from systemd import journal  # type: ignore[attr-defined]

        self._send = journal.send

    def emit(self, record: logging.LogRecord) -> None:
        try:
            event = getattr(record, "event", None)
            named = getattr(record, "fields", {})
            fields = {name: encodable(text) for name, text in named.items()}
            if event is not None:
                fields["MESSAGE_ID"] = event.value.hex
            self._send(
                encodable(self.format(record)),
                PRIORITY=_LEVELS.get(record.levelno, 6),
                SYSLOG_IDENTIFIER=IDENTIFIER,
                LOGGER=record.name,
                CODE_FILE=record.pathname,
                CODE_LINE=record.lineno,
                CODE_FUNC=record.funcName,
                **fields,
            )
        except Exception:
            self.handleError(record)
