"""Files in a directory that may belong to another user: no link of that user is followed.

The runtime and the state directory belong to the service's user, and root works in them too, by
`cleanup` and by a daemon that is started by hand.
"""

import os
import stat
from contextlib import suppress
from errno import EINVAL
from pathlib import Path
from secrets import token_hex

_SAFELY = os.O_CLOEXEC | os.O_NOFOLLOW
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL


def open_regular(path: Path, flags: int, mode: int = 0o666) -> int:
    """A descriptor of a regular file. Raises OSError for any other kind of file, and for a link."""
    # A FIFO would block without O_NONBLOCK.
    descriptor = os.open(path, flags | _SAFELY | os.O_NONBLOCK, mode)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(EINVAL, "not a regular file", str(path))
    return descriptor


def read_text(path: Path) -> str:
    """The text of a regular file. Raises OSError and ValueError."""
    with os.fdopen(open_regular(path, os.O_RDONLY)) as file:
        return file.read()


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a crash leaves the old one or the new one. Raises OSError."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # A name that nobody can know before.
        unfinished = f".{path.name}.{token_hex(8)}"
        descriptor = os.open(unfinished, _NEW | _SAFELY, 0o666, dir_fd=directory)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path.name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with suppress(OSError):
                os.unlink(unfinished, dir_fd=directory)
            raise
        os.fsync(directory)
    finally:
        os.close(directory)
