"""The kinds of writes to nftables: our table, its elements, accepts in foreign chains. Pure."""

from dataclasses import dataclass

from vm_onetoone_nat.decide.writes import About, NftWrite, Order, OurTable, Write
from vm_onetoone_nat.model.host import ChainName
from vm_onetoone_nat.model.nat_table import TABLE, Element
from vm_onetoone_nat.model.status import Cause

TABLE_KEY = f"table inet {TABLE}"
"""The key of writes that replace our table."""


@dataclass(frozen=True, slots=True)
class RemoveTable(NftWrite):
    """Delete our table with all that is in it."""

    order = Order.REMOVE_TABLE
    adds = False
    words = TABLE_KEY
    about = OurTable()


@dataclass(frozen=True, slots=True)
class AdoptTable(NftWrite):
    """Become the owner of our table, whose owner has ended. It stays as it is."""

    order = Order.ADOPT_TABLE
    adds = True
    words = f"ownership of {TABLE_KEY}"
    about = "only its owner can change the table, and 'nft flush ruleset' leaves it alone"


@dataclass(frozen=True, slots=True)
class InstallTable(NftWrite):
    """Replace our table by the static one with this mark bit, which has no elements.

    `persistent`: this process becomes its owner, and it outlives the process.
    """

    fwmark: int
    persistent: bool = False
    order = Order.INSTALL_TABLE
    adds = True
    key = TABLE_KEY
    about = OurTable()

    @property
    def words(self) -> str:
        return f"{TABLE_KEY}, mark {self.fwmark:#010x}"

    @property
    def inverse(self) -> Write:
        return RemoveTable()


@dataclass(frozen=True, slots=True)
class _ElementWrite(NftWrite):
    """`part_of` is the key of a write that this one depends on, such as InstallTable."""

    element: Element
    part_of: str | None = None

    @property
    def words(self) -> str:
        return str(self.element)

    @property
    def about(self) -> About:
        return self.element

    @property
    def key(self) -> str:
        return self.part_of or self.words


class DeleteElement(_ElementWrite):
    """Delete an element of our table."""

    __slots__ = ()
    order = Order.DELETE_ELEMENT
    adds = False

    @property
    def inverse(self) -> Write:
        return AddElement(self.element)


class AddElement(_ElementWrite):
    """Add an element to our table."""

    __slots__ = ()
    order = Order.ADD_ELEMENT
    adds = True

    @property
    def inverse(self) -> Write:
        return DeleteElement(self.element)


@dataclass(frozen=True, slots=True)
class DeleteAccept(NftWrite):
    """Delete a rule of ours from a foreign chain.

    `part_of` is the key of the write that inserts the rule again, at the head.
    """

    chain: ChainName
    handle: int
    part_of: str | None = None
    order = Order.DELETE_ACCEPT
    adds = False

    @property
    def words(self) -> str:
        return f"{accept_key(self.chain)}, handle {self.handle}"

    @property
    def about(self) -> About:
        return self.chain

    @property
    def key(self) -> str | None:
        return self.part_of


@dataclass(frozen=True, slots=True)
class InsertAccept(NftWrite):
    """Insert a rule that accepts our mark bit at the head of a foreign chain."""

    chain: ChainName
    fwmark: int
    order = Order.INSERT_ACCEPT
    adds = True
    cause = Cause.ACCEPT_MISSING
    lacked_by_all = True

    @property
    def words(self) -> str:
        return f"accept of mark {self.fwmark:#010x} at the head of {self.chain}"

    @property
    def about(self) -> About:
        return self.chain

    @property
    def key(self) -> str:
        return accept_key(self.chain)

    @property
    def reason(self) -> str:
        return f"the rule that admits guests is not at the head of chain {self.chain}"


def accept_key(chain: ChainName) -> str:
    """The key of writes that put our accept at the head of a chain."""
    return f"accept in {chain}"
