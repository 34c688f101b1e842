"""Other programs that undo what the daemon writes: when to pause a repair.

Pure; times are arguments. A repair is a write without a change of the desired state. A repair that
is repeated too often is a fight.
"""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from math import inf

from vm_onetoone_nat.decide.plan import Plan
from vm_onetoone_nat.model.desired import Desired
from vm_onetoone_nat.model.trigger import Triggers

REPAIRS = 5
WITHIN_SECONDS = 30.0
"""This many repairs of one object within this time are a fight."""

_HOLD_SECONDS = (5.0, 15.0, 60.0)
_EXPIRY_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Fight:
    """An object that another program keeps undoing; it is not repaired for `hold` seconds.

    `rivals` are the last triggers that named a writer. A repair need not know: the pass before may
    have seen that it is undone before the notification came.
    """

    what: str
    rivals: tuple[str, ...]
    hold: float


@dataclass(slots=True)
class _Object:
    repairs: deque[float] = field(default_factory=lambda: deque(maxlen=REPAIRS))
    held_until: float = -inf
    holds: int = 0
    rivals: tuple[str, ...] = ()


class Fights:
    """Counts the repairs of each object, and holds back those that are undone too often."""

    def __init__(self) -> None:
        self._objects: dict[str, _Object] = {}
        self._desired: Desired | None = None

    def held(self, now: float) -> frozenset[str]:
        """The keys of the writes that are held back now."""
        return frozenset(key for key, known in self._objects.items() if known.held_until > now)

    def written(
        self, now: float, plans: Collection[Plan], desired: Desired, triggers: Triggers
    ) -> tuple[Fight, ...]:
        """Record what a pass wrote, with its triggers; return the fights that begin with it.

        A pass is one repair of an object, however many of its plans have a write of it.
        """
        if not plans:
            return ()
        same = self._desired is not None and desired.content == self._desired.content
        self._desired = desired
        self._objects = {
            what: known
            for what, known in self._objects.items()
            if known.held_until > now - _EXPIRY_SECONDS
            or (known.repairs and known.repairs[-1] > now - WITHIN_SECONDS)
        }
        if not same:
            return ()
        fights = []
        rivals = tuple(sorted(t.text for t in triggers if t.writer is not None))
        keys = (write.key for plan in plans for write in plan.writes)
        for what in dict.fromkeys(key for key in keys if key is not None):
            known = self._objects.setdefault(what, _Object())
            if known.held_until > now:
                # Not repaired: what needs it was withdrawn.
                continue
            known.repairs.append(now)
            known.rivals = rivals or known.rivals
            again = known.holds > 0 and known.held_until > -inf
            often = len(known.repairs) == REPAIRS and known.repairs[0] > now - WITHIN_SECONDS
            if often or again:
                hold = _HOLD_SECONDS[min(known.holds, len(_HOLD_SECONDS) - 1)]
                if known.holds == 0:
                    fights.append(Fight(what, known.rivals, hold))
                known.holds += 1
                known.held_until = now + hold
        return tuple(fights)

    def next_attempt(self, now: float) -> float:
        """Seconds until the next held write may be repeated; infinite if none is held."""
        return min(
            (k.held_until - now for k in self._objects.values() if k.held_until > now), default=inf
        )
