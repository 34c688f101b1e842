"""When a repair that is undone again and again is left alone for a while."""

from dataclasses import replace

import pytest
from fakes import FORWARD, LIBVIRT_FORWARD, own_address
from lab.addresses import external
from vm_onetoone_nat.decide.fights import REPAIRS, WITHIN_SECONDS, Fight, Fights
from vm_onetoone_nat.decide.host_writes import (
    AddAddress,
    DeleteAddress,
    EnableIpForward,
    SetHairpin,
)
from vm_onetoone_nat.decide.nft_writes import (
    TABLE_KEY,
    AddElement,
    DeleteAccept,
    DeleteElement,
    InsertAccept,
    InstallTable,
    accept_key,
)
from vm_onetoone_nat.decide.plan import Plan, describe
from vm_onetoone_nat.decide.writes import excluding
from vm_onetoone_nat.model import nat_table
from vm_onetoone_nat.model.desired import Desired
from vm_onetoone_nat.model.nat_table import element
from vm_onetoone_nat.model.trigger import Kind, Trigger, Triggers

MARK = 0x100000
ADDRESS = own_address(external(1))
ELEMENT = element(nat_table.OUTBOUND, ("192.168.122.101",))
DESIRED = Desired((), (ADDRESS,), frozenset(), MARK, frozenset())
WRITER = "puppet (process 4711)"
RIVAL = Trigger(Kind.NFTABLES, f"nftables: written by {WRITER}", WRITER)
NEIGHBOUR = Trigger(Kind.NEIGHBOUR, "neighbour")
NO_RIVAL = frozenset({NEIGHBOUR})

PLANS = {
    "address": Plan((AddAddress(ADDRESS),)),
    "stray address": Plan((DeleteAddress(ADDRESS),)),
    "accept": Plan((DeleteAccept(FORWARD, 7, accept_key(FORWARD)), InsertAccept(FORWARD, MARK))),
    "table": Plan((InstallTable(MARK), AddElement(ELEMENT, TABLE_KEY))),
    "element": Plan((AddElement(ELEMENT),)),
    "stray element": Plan((DeleteElement(ELEMENT),)),
    "hairpin": Plan((SetHairpin("vnet0"),)),
    "forwarding": Plan((EnableIpForward(),)),
}


def fought(plan: Plan, triggers: Triggers = NO_RIVAL) -> tuple[Fights, list[Fight]]:
    """After so many repairs, a second apart, that it is a fight; it is 0 o'clock then."""
    fights = Fights()
    said: list[Fight] = []
    fights.written(-100, (plan,), DESIRED, triggers)
    for n in range(REPAIRS):
        said += fights.written(n - REPAIRS, (plan,), DESIRED, triggers)
    return fights, said


def left(fights: Fights, now: float, plan: Plan) -> Plan:
    """What is written of a plan then."""
    return Plan(excluding(plan.writes, fights.held(now)))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_fight(plan: Plan) -> None:
    """Whatever it is: after some repairs in a short time it is left alone, said once."""
    fights, said = fought(plan)
    assert len(said) == 1
    assert left(fights, 0, plan) == Plan()
    assert 0 < fights.next_attempt(0) <= said[0].hold
    assert left(fights, said[0].hold, plan) == plan


def test_rival_is_named() -> None:
    """What is known of who undoes it is said with it."""
    _, (fight,) = fought(PLANS["accept"], frozenset({RIVAL, NEIGHBOUR}))
    assert fight == Fight("accept in ip filter FORWARD", (RIVAL.text,), 5.0)


def test_rival_of_an_earlier_repair() -> None:
    """The last repair need not know who undid it: then it is whoever undid an earlier one."""
    fights = Fights()
    plans = (PLANS["accept"],)
    said: list[Fight] = []
    for n in range(REPAIRS + 1):
        triggers = frozenset({RIVAL}) if n == 2 else NO_RIVAL
        said += fights.written(n, plans, DESIRED, triggers)
    (fight,) = said
    assert fight.rivals == (RIVAL.text,)


def test_text_names_no_rival() -> None:
    """A rival is a writer, not a word: a guest that is suspended by power management is none.

    It was one, since " by " stands in the text.
    """
    suspended = Trigger(Kind.DOMAIN, "domain web: suspended by power management")
    _, (fight,) = fought(PLANS["accept"], frozenset({suspended}))
    assert fight.rivals == ()


def test_others_are_not_held() -> None:
    """What nobody contests is written all the same."""
    fights, _ = fought(PLANS["accept"])
    others = (
        AddElement(ELEMENT),
        DeleteAccept(LIBVIRT_FORWARD, 9, accept_key(LIBVIRT_FORWARD)),
        InsertAccept(LIBVIRT_FORWARD, MARK),
        AddAddress(ADDRESS),
    )
    assert left(fights, 0, Plan((*PLANS["accept"].writes, *others))) == Plan(others)


def test_names_of_objects() -> None:
    """A fight names its object in the words of `plan`."""
    names = {kind: said[0].what for kind, plan in PLANS.items() for _, said in [fought(plan)]}
    for kind, plan in PLANS.items():
        assert any(line[2:].startswith(names[kind]) for line in describe(plan)), kind


def test_ever_more_seldom() -> None:
    """While the fight goes on the pauses grow to a minute, and nothing more is said."""
    plan = PLANS["address"]
    fights, (fight,) = fought(plan)
    now, pauses = fight.hold, []
    for _ in range(4):
        assert fights.written(now, (plan,), DESIRED, NO_RIVAL) == ()
        pauses.append(fights.next_attempt(now))
        now += pauses[-1]
    assert pauses == [15, 60, 60, 60]


def test_a_change_of_what_is_desired_is_no_repair() -> None:
    """A guest that starts and stops all the time makes writes, and no fight."""
    fights = Fights()
    gone = replace(DESIRED, addresses=())
    for n in range(50):
        assert fights.written(n, (PLANS["address"],), DESIRED if n % 2 else gone, NO_RIVAL) == ()
    assert left(fights, 50, PLANS["address"]) == PLANS["address"]


def test_now_and_then_is_no_fight() -> None:
    """A repair that is needed now and then, as after a reload of a firewall, is made at once."""
    fights, plan = Fights(), PLANS["accept"]
    for n in range(100):
        now = n * WITHIN_SECONDS / (REPAIRS - 2)
        assert left(fights, now, plan) == plan
        assert fights.written(now, (plan,), DESIRED, NO_RIVAL) == ()


def test_several_plans_of_one_pass() -> None:
    """A pass is one repair, though it writes an object with several plans, as in a bisection.

    Each was counted: after two such passes the object was held back.
    """
    plan = PLANS["element"]
    fights = Fights()
    said: list[Fight] = []
    for n in range(REPAIRS):
        assert left(fights, n, plan) == plan
        said += fights.written(n, (plan, PLANS["accept"], plan), DESIRED, NO_RIVAL)
    # The first one is no repair.
    assert said == []
    said += fights.written(REPAIRS, (plan, plan), DESIRED, NO_RIVAL)
    assert [fight.what for fight in said] == [str(ELEMENT)]


def test_withdrawal() -> None:
    """What is written of an object while it is held back is no repair: the pause is not longer."""
    fights, _ = fought(PLANS["table"])
    pause = fights.next_attempt(1)
    withdrawn = Plan((DeleteAddress(ADDRESS, TABLE_KEY),))
    assert fights.written(1, (withdrawn,), DESIRED, NO_RIVAL) == ()
    assert fights.next_attempt(1) == pause


def test_passes_that_write_nothing() -> None:
    """They are no repair, whatever is desired meanwhile."""
    fights = Fights()
    for n in range(2 * REPAIRS):
        assert fights.written(n, (), DESIRED, NO_RIVAL) == ()
    assert fights.held(2 * REPAIRS) == frozenset()


def test_peace() -> None:
    """Some minutes after the last repair the fight is forgotten, and a new one is said again."""
    plan = PLANS["address"]
    fights, _ = fought(plan)
    said: list[Fight] = []
    for n in range(REPAIRS):
        said += fights.written(1000 + n, (plan,), DESIRED, NO_RIVAL)
    assert len(said) == 1
