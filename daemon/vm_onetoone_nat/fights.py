"""Other programs that undo what the daemon writes: when to stop repeating it for a while.

Pure: times come in as arguments. A repair is a write although nothing else was desired than
before; the same one again and again is a fight that nobody wins.
"""

from collections import deque
from dataclasses import dataclass, field, replace
from math import inf

from vm_onetoone_nat.plan import Plan, Transaction
from vm_onetoone_nat.state import Desired

REPAIRS = 5
WITHIN_SECONDS = 30.0
"""So many repairs of one thing in that time are a fight."""

_HOLD_SECONDS = (5.0, 15.0, 60.0)
_FORGET_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Fight:
    """One thing that somebody keeps undoing; `hold` is how long it is left alone, in seconds."""

    what: str
    rivals: tuple[str, ...]
    hold: float


@dataclass(slots=True)
class _Object:
    repairs: deque[float] = field(default_factory=lambda: deque(maxlen=REPAIRS))
    held_until: float = -inf
    holds: int = 0


class Fights:
    """What is repaired how often."""

    def __init__(self) -> None:
        self._objects: dict[str, _Object] = {}
        self._desired: Desired | None = None

    def hold(self, now: float, plan: Plan) -> Plan:
        """The plan without what is to be left alone for now."""
        held = {what for what, known in self._objects.items() if known.held_until > now}
        if not held:
            return plan
        transaction = plan.transaction
        if transaction.install is not None and _TABLE in held:
            transaction = replace(
                Transaction(),
                delete_accepts=transaction.delete_accepts,
                insert_accepts=transaction.insert_accepts,
            )
        in_peace = [c for c, _ in transaction.insert_accepts if f"accept in {c}" not in held]
        contested = {c for c, _ in transaction.insert_accepts} - set(in_peace)
        transaction = replace(
            transaction,
            add_elements=tuple(e for e in transaction.add_elements if str(e) not in held),
            delete_elements=tuple(e for e in transaction.delete_elements if str(e) not in held),
            insert_accepts=tuple(a for a in transaction.insert_accepts if a[0] in in_peace),
            delete_accepts=tuple(a for a in transaction.delete_accepts if a[0] not in contested),
        )
        return replace(
            plan,
            enable_ip_forward=plan.enable_ip_forward and _FORWARDING not in held,
            transaction=transaction,
            add_addresses=tuple(a for a in plan.add_addresses if f"address {a}" not in held),
            delete_addresses=tuple(a for a in plan.delete_addresses if f"address {a}" not in held),
            set_hairpins=tuple(h for h in plan.set_hairpins if f"hairpin of {h}" not in held),
        )

    def written(
        self, now: float, plan: Plan, desired: Desired, triggers: frozenset[str]
    ) -> tuple[Fight, ...]:
        """Take note of what a pass wrote, and why; the fights that this shows, each said once."""
        same = self._desired is not None and desired.content == self._desired.content
        self._desired = desired
        self._objects = {
            what: known
            for what, known in self._objects.items()
            if known.held_until > now - _FORGET_SECONDS
            or (known.repairs and known.repairs[-1] > now - WITHIN_SECONDS)
        }
        if not same:
            return ()
        fights = []
        for what in _objects(plan):
            known = self._objects.setdefault(what, _Object())
            known.repairs.append(now)
            again = known.holds > 0 and known.held_until > -inf
            often = len(known.repairs) == REPAIRS and known.repairs[0] > now - WITHIN_SECONDS
            if often or again:
                hold = _HOLD_SECONDS[min(known.holds, len(_HOLD_SECONDS) - 1)]
                if known.holds == 0:
                    rivals = sorted(trigger for trigger in triggers if " by " in trigger)
                    fights.append(Fight(what, tuple(rivals), hold))
                known.holds += 1
                known.held_until = now + hold
        return tuple(fights)

    def next_attempt(self, now: float) -> float:
        """In how many seconds something held may be tried again; infinite where nothing is."""
        return min(
            (k.held_until - now for k in self._objects.values() if k.held_until > now), default=inf
        )


_TABLE = "table inet vm_onetoone_nat"
_FORWARDING = "sysctl net.ipv4.ip_forward"


def _objects(plan: Plan) -> list[str]:
    """What a plan writes to, each named as `hold` knows it."""
    transaction = plan.transaction
    if transaction.install is not None:
        elements = [_TABLE]
    else:
        changed = (*transaction.add_elements, *transaction.delete_elements)
        elements = [str(element) for element in changed]
    return [
        *([_FORWARDING] if plan.enable_ip_forward else []),
        *elements,
        *(f"accept in {chain}" for chain, _ in transaction.insert_accepts),
        *dict.fromkeys(f"address {a}" for a in (*plan.add_addresses, *plan.delete_addresses)),
        *(f"hairpin of {name}" for name in plan.set_hairpins),
    ]
