"""A write of a pass, as all modules see it; the kinds are in `host_writes` and `nft_writes`.

Pure. `plan` says which writes there are. `kernel` applies those of `host_writes`, and `ruleset` has
the commands of those of `nft_writes`. Nobody else needs to know the kinds.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Set
from dataclasses import dataclass
from enum import IntEnum, auto
from typing import ClassVar

from vm_onetoone_nat.errors import KernelError
from vm_onetoone_nat.model.host import Address, ChainName
from vm_onetoone_nat.model.nat_table import Element, Translation
from vm_onetoone_nat.model.status import Cause


class Order(IntEnum):
    """The order in a pass, one for each kind.

    An address is deleted before its translation and added after it: while the host has an external
    address without a translation, a packet for the guest reaches the host itself. A hairpin flag is
    set after the transaction has recorded the port in our table, and cleared before the record is
    deleted: a flag without a record would never be cleared. Tracked connections are flushed last.
    """

    RECORD_ALLOCATIONS = auto()
    ENABLE_IP_FORWARD = auto()
    DELETE_ADDRESS = auto()
    CLEAR_HAIRPIN = auto()
    # One nftables transaction; `REQUESTS` of `ruleset` has the order inside it.
    ADOPT_TABLE = auto()
    REMOVE_TABLE = auto()
    INSTALL_TABLE = auto()
    DELETE_ELEMENT = auto()
    ADD_ELEMENT = auto()
    DELETE_ACCEPT = auto()
    INSERT_ACCEPT = auto()
    SET_HAIRPIN = auto()
    ADD_ADDRESS = auto()
    FLUSH_TRANSLATED = auto()
    FLUSH_BYPASSING = auto()


@dataclass(frozen=True, slots=True)
class OurTable:
    """Our nftables table, as the object of a write."""


About = Address | Element | Translation | ChainName | OurTable | str


class Write(ABC):
    """One write: values and words. Two writes are equal if they do the same.

    `adds` is true for an addition, false for a removal. `restores`: made without a change of the
    desired state, it is a repair. `shown`: it is a line of `plan`. `cause`: while it has not been
    made, the mapping to which it gives a part is in error with this cause; with `lacked_by_all`,
    every active mapping is.
    """

    __slots__ = ()

    order: ClassVar[Order]
    adds: ClassVar[bool]
    restores: ClassVar[bool] = True
    shown: ClassVar[bool] = True
    cause: ClassVar[Cause | None] = None
    lacked_by_all: ClassVar[bool] = False

    @property
    @abstractmethod
    def words(self) -> str:
        """What is added or removed."""

    @property
    @abstractmethod
    def about(self) -> About:
        """The object that it is for, or the reason if all of its kind have the same."""

    @property
    def key(self) -> str | None:
        """The object that another program may undo: `fights` counts and holds its writes together.

        None: neither counted nor held.
        """
        return None

    @property
    def part_of(self) -> str | None:
        """The key of the write of the same plan that this one depends on; None if on none.

        It has that key then. It is not made if the other one fails.
        """
        return None

    @property
    def reason(self) -> str:
        """The reason for the error of `cause`."""
        return "the kernel lacks a part of it: see 'plan'"

    @property
    def inverse(self) -> "Write | None":
        """The write that undoes it; None if it does not say all that is needed for that."""
        return None

    def __str__(self) -> str:
        return f"{'+' if self.adds else '-'} {self.words}"


class WritesFailed(KernelError):
    """Some writes of a plan failed. `writes` are these, and those that depend on them."""

    def __init__(self, message: str, writes: frozenset[Write]) -> None:
        super().__init__(message)
        self.writes = writes


def excluding(writes: Iterable[Write], keys: Set[str]) -> tuple[Write, ...]:
    """The writes that have none of these keys, in their order."""
    return tuple(write for write in writes if write.key not in keys)


class StoreWrite(Write):
    """A write to the store: made before those to the kernel, which knows nothing of it."""

    __slots__ = ()
    restores = False


class NftWrite(Write):
    """A write to nftables: all of a plan are one transaction, which takes effect or does not."""

    __slots__ = ()
    cause = Cause.RULES_MISSING


def depending(writes: Iterable[Write], failed: Iterable[Write]) -> frozenset[Write]:
    """Those of the writes that depend on one that failed, alone or with its transaction."""
    keys = {w.key for w in failed if w.part_of is None or isinstance(w, NftWrite)} - {None}
    return frozenset(write for write in writes if write.part_of in keys)
