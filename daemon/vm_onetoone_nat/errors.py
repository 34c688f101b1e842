"""Errors that are shown to a user, classified where they are raised."""


class VmNatError(Exception):
    """An expected failure: one line that says what is wrong, and a hint that says what to do.

    `cli` prints it and exits with `exit_code`.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}: {self.hint}" if self.hint else self.message


class ConfigError(VmNatError):
    """The configuration is refused; `problems` holds one line for each fault found."""

    exit_code = 78  # EX_CONFIG of sysexits.h; systemd knows the name

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class PrivilegeError(VmNatError):
    """The process lacks the privileges that the command needs."""


class CannotRun(VmNatError):
    """The program cannot run here: a part of it is missing. Another start fails too."""

    exit_code = 69  # EX_UNAVAILABLE of sysexits.h


class LibvirtUnavailable(VmNatError):
    """libvirt does not answer."""


class KernelError(VmNatError):
    """The kernel refused an operation, or could not be read."""


class StoreError(VmNatError):
    """What is remembered between runs cannot be written."""


class TransactionRefused(KernelError):
    """The kernel refused an nftables transaction; no part of it was applied."""
