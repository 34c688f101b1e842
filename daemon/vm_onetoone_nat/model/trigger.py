"""Why a pass runs: the values that event sources put on the queue. Pure."""

from collections.abc import Set
from dataclasses import dataclass
from enum import Enum, auto


class Kind(Enum):
    """The source of a trigger, and what it reports."""

    START = auto()
    RELOAD = auto()
    RETRY = auto()
    RESYNC = auto()
    SETTING = auto()
    LINK = auto()
    ADDRESS = auto()
    ROUTE = auto()
    NEIGHBOUR = auto()
    BRIDGE = auto()
    FORWARDING = auto()
    NFTABLES = auto()
    RULESET = auto()
    RTNETLINK_LOST = auto()
    NFTABLES_LOST = auto()
    ARP = auto()
    DOMAIN = auto()
    NETWORK = auto()
    LIBVIRT = auto()
    GUEST = auto()

    @property
    def label(self) -> str:
        """The label `cause` of the metric repairs_total. Stable: users rely on it."""
        return _LABELS.get(self, self.name.lower())


_LABELS = {Kind.RTNETLINK_LOST: "rtnetlink", Kind.NFTABLES_LOST: "nftables"}


@dataclass(frozen=True, slots=True)
class Trigger:
    """One event that asks for a pass. `text` is for the log.

    `writer` is the process that wrote to the kernel, if the event says which. `mac` is that of the
    neighbour.
    """

    kind: Kind
    text: str
    writer: str | None = None
    mac: str | None = None


START = Trigger(Kind.START, "start")
RELOAD = Trigger(Kind.RELOAD, "reload")
RETRY = Trigger(Kind.RETRY, "retry")
RESYNC = Trigger(Kind.RESYNC, "resync")
SETTING = Trigger(Kind.SETTING, "setting changed")

Triggers = frozenset[Trigger]


def kinds(triggers: Triggers) -> frozenset[Kind]:
    """The kinds of these triggers."""
    return frozenset(trigger.kind for trigger in triggers)


def texts(triggers: Triggers) -> str:
    """The triggers, for the log."""
    return ", ".join(sorted({trigger.text for trigger in triggers}))


def macs(triggers: Triggers) -> frozenset[str]:
    """The MACs of the neighbours that triggers are about."""
    return frozenset(trigger.mac for trigger in triggers if trigger.mac is not None)


def is_news(triggers: Set[Trigger], notified: int, observed: int) -> bool:
    """Whether a pass is needed: not if the last one has observed this ruleset already.

    `notified` and `observed` are generations of the ruleset: the last one of a notification, and
    the one of the last pass.
    """
    only_rules = all(trigger.kind is Kind.NFTABLES for trigger in triggers)
    return not only_rules or notified > observed
