"""Errors of sockets, and of reading what they sent, as KernelErrors."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager

from vm_onetoone_nat.errors import KernelError


@contextmanager
def kernel_errors(what: str) -> Iterator[None]:
    """Raise KernelError for all that a request to the kernel may raise; `what` begins its text."""
    try:
        yield
    except OSError as error:
        raise KernelError(f"{what}: {error.strerror or str(error) or repr(error)}") from error
    except (struct.error, UnicodeError) as error:
        raise KernelError(f"{what}: {error}") from error
