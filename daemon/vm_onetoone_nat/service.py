"""The daemon: wires the parts together, handles signals, reloads."""

import gc
import logging
import os
import signal
import threading
import time
from collections import Counter
from math import inf
from pathlib import Path

from vm_onetoone_nat import __version__, config
from vm_onetoone_nat.arp import Arp
from vm_onetoone_nat.bridge import bridge_netfilter
from vm_onetoone_nat.errors import ConfigError, KernelError
from vm_onetoone_nat.events import Event
from vm_onetoone_nat.fights import Fight, Fights
from vm_onetoone_nat.history import History
from vm_onetoone_nat.host_writes import EnableIpForward
from vm_onetoone_nat.instance import Instance
from vm_onetoone_nat.journal import entry, status_fields
from vm_onetoone_nat.kernel import Kernel, conflicts_path
from vm_onetoone_nat.libvirt_source import LibvirtSource
from vm_onetoone_nat.nft import read_counters
from vm_onetoone_nat.notify import Notify
from vm_onetoone_nat.plan import describe
from vm_onetoone_nat.reconcile import Look, Outcome, reconcile, remove
from vm_onetoone_nat.report import report_to_json
from vm_onetoone_nat.runner import Runner
from vm_onetoone_nat.state import (
    AddressSource,
    Configuration,
    Mapping,
    MappingState,
    MappingStatus,
    Obstacle,
    Unmapped,
)
from vm_onetoone_nat.status_socket import StatusSocket, socket_path
from vm_onetoone_nat.trigger import RELOAD, Kind, Triggers, is_news, kinds, texts
from vm_onetoone_nat.watch import Watch

log = logging.getLogger(__name__)

_LEASE_SECONDS = 1.0
_FIRST_LOOK_SECONDS = 3.0


class Service:
    """The daemon in the foreground. Create and run it in the main thread: it handles signals."""

    def __init__(
        self, path: Path, configuration: Configuration, runtime: Path, state: Path
    ) -> None:
        self._path = path
        self._configuration = configuration
        self._instance = Instance(runtime)
        self._instance.acquire()
        self._notify = Notify()
        watchdog = self._notify.watchdog_seconds or inf
        self._runner = Runner(
            self._pass, self._tick, is_news=self._is_news, longest_tick=watchdog / 3
        )
        self._arp = Arp(self._runner.notify, conflicts_path(runtime))
        self._kernel = Kernel(runtime, state, self._arp)
        self._source = self._connect(configuration)
        self._watch = Watch(self._runner.notify, self._is_guest, self._kernel.portid)
        self._looked = threading.Event()
        self._history = History(time.monotonic())
        self._status = StatusSocket(socket_path(runtime), self._answer_status)
        self._fights = Fights()
        self._obstacles = Obstacles()
        self._logged: dict[object, MappingStatus] = {}
        self._macs: frozenset[str] = frozenset()
        self._internals: frozenset[str] = frozenset()
        self._unmapped: tuple[Unmapped, ...] = ()
        self._uplink: str | None = None
        self._failures: tuple[str, ...] = ()
        self._bridge_netfilter = bridge_netfilter()

    def _connect(self, configuration: Configuration) -> LibvirtSource:
        return LibvirtSource(
            configuration.libvirt_uri,
            self._runner.notify,
            guest_agent=configuration.guest_agent,
        )

    def run(self) -> None:
        """Reconcile until SIGTERM or SIGINT; SIGHUP reloads the configuration."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: self._runner.stop())
        signal.signal(signal.SIGHUP, lambda _number, _frame: self._runner.notify(RELOAD))
        log.info(
            "started with %d mappings",
            len(self._configuration.mappings),
            extra=entry(Event.STARTED),
        )
        # All that is loaded now stays: the collector need not scan it during a pass.
        gc.freeze()
        self._watch.start()
        self._arp.start()
        self._source.start()
        try:
            self._status.start()
        except OSError as error:
            log.warning("the status socket cannot be created: %s", error)
        self._runner.run()
        self._notify.stopping()
        self._status.stop()
        self._source.stop()
        self._arp.stop()
        if self._notify.managed:
            # Only systemd knows whether this is a stop or a restart: ExecStopPost= asks it.
            log.info("stopped; addresses and rules stay in the kernel", extra=entry(Event.STOPPED))
            return
        remove(self._configuration.fwmark, self._kernel)
        log.info("stopped; addresses and rules are removed", extra=entry(Event.STOPPED))

    def _is_news(self, triggers: Triggers) -> bool:
        return is_news(triggers, self._watch.generation, self._kernel.generation)

    def _pass(self, triggers: Triggers) -> float | None:
        seen = kinds(triggers)
        if Kind.RELOAD in seen:
            self._notify.reloading()
            self._reload()
        self._bridge_netfilter = bridge_netfilter()
        began = time.monotonic()
        if Kind.NEIGHBOUR in seen:
            self._source.ask_agents_again()
        try:
            outcome = reconcile(
                self._configuration,
                self._source,
                self._kernel,
                lambda plan: self._fights.hold(time.monotonic(), plan),
            )
        except KernelError as error:
            self._history.failed(began, time.monotonic())
            self._looked.set()
            self._log_failures((str(error),))
            self._notify.ready(f"Cannot read the kernel's state: {error}")
            return None
        self._history.passed(began, time.monotonic(), triggers, outcome)
        self._looked.set()
        for written in outcome.written:
            desired = outcome.look.desired
            for fight in self._fights.written(time.monotonic(), written, desired, triggers):
                _log_fight(fight)
        self._remember(outcome.look)
        self._log(outcome, triggers)
        self._notify.alive()
        if seen & {Kind.START, Kind.RELOAD}:
            self._notify.ready(_summary(outcome))
        else:
            self._notify.status(_summary(outcome))
        if outcome.failures:
            return None
        now = time.monotonic()
        again = min(self._fights.next_attempt(now), self._obstacles.next_look(now))
        # A DHCP server records a lease only after the guest has it.
        return min(again, _LEASE_SECONDS) if Kind.NEIGHBOUR in seen else again

    def _remember(self, look: Look) -> None:
        """Keep the MACs and addresses of guests, by which `_is_guest` filters neighbours."""
        if look.guests is not None:
            self._macs = frozenset(n.mac for d in look.guests.domains for n in d.interfaces)
        self._internals = frozenset(str(s.mapping.internal) for s in look.desired.statuses)

    def _tick(self) -> bool:
        """Feed the watchdog, in the thread that reconciles, so that it expires if a pass hangs.

        Returns whether br_netfilter was switched: the kernel sends no notification of that.
        """
        self._notify.alive()
        return bridge_netfilter() != self._bridge_netfilter

    def _reload(self) -> None:
        try:
            configuration = config.load(self._path)
            observed = self._kernel.observe(configuration)
            config.check_host(self._path, configuration, observed.addresses)
        except ConfigError as error:
            for problem in error.problems:
                log.error("%s", problem, extra=entry(Event.CONFIGURATION_REFUSED, reason=problem))
            log.error(
                "not reloaded: the running configuration stays in effect",
                extra=entry(Event.CONFIGURATION_REFUSED),
            )
            return
        except KernelError as error:
            log.error("not reloaded: %s", error, extra=entry(Event.RECONCILE_FAILED, reason=error))
            return
        before, self._configuration = self._configuration, configuration
        if (configuration.libvirt_uri, configuration.guest_agent) != (
            before.libvirt_uri,
            before.guest_agent,
        ):
            self._source.stop()
            self._source = self._connect(configuration)
            self._source.start()
        log.info(
            "configuration reloaded: %d mappings",
            len(configuration.mappings),
            extra=entry(Event.CONFIGURATION_READ),
        )

    def _answer_status(self) -> str:
        """The status socket's answer, in a thread of its own; waits for the first pass."""
        self._looked.wait(_FIRST_LOOK_SECONDS)
        counters = read_counters()
        report = self._history.report(time.monotonic(), os.getpid(), __version__, counters)
        return report_to_json(report) if report is not None else ""

    def _is_guest(self, address: str, mac: str) -> bool:
        return mac in self._macs or address in self._internals

    def _log(self, outcome: Outcome, triggers: Triggers) -> None:
        for written in outcome.written if log.isEnabledFor(logging.DEBUG) else ():
            for line in describe(written):
                log.debug("%s (%s)", line, texts(triggers))
        enabled = any(EnableIpForward() in plan.writes for plan in outcome.written)
        if enabled and outcome.look.observed.ip_forward:
            log.warning(
                "net.ipv4.ip_forward was off: turned on for the whole host",
                extra=entry(Event.IP_FORWARD_ENABLED),
            )
        for obstacle in self._obstacles.lasting(time.monotonic(), outcome.look.observed.obstacles):
            log.warning(
                "%s may refuse guests: %s",
                obstacle.where,
                obstacle.remedy,
                extra=entry(Event.FIREWALL_REFUSES, reason=obstacle.where),
            )
        uplink = outcome.look.observed.uplink
        if uplink != self._uplink:
            log.info(
                "the uplink is %s",
                uplink or "gone",
                extra=entry(Event.UPLINK_CHANGED, uplink=uplink),
            )
            self._uplink = uplink
        for status in outcome.statuses:
            if self._logged.get(status.mapping) != status:
                _log_status(status, uplink)
        self._logged = {status.mapping: status for status in outcome.statuses}
        for unmapped in outcome.look.desired.unmapped:
            if unmapped not in self._unmapped:
                _log_unmapped(unmapped)
        self._unmapped = outcome.look.desired.unmapped
        self._log_failures(outcome.failures)

    def _log_failures(self, failures: tuple[str, ...]) -> None:
        """Log each failure once, not at every retry."""
        for failure in failures:
            if failure not in self._failures:
                log.error("%s", failure, extra=entry(Event.RECONCILE_FAILED, reason=failure))
        self._failures = failures


class Obstacles:
    """Which foreign firewalls to log: not those that exist for a moment only.

    firewalld drops all packets while it reloads.
    """

    LASTING_SECONDS = 2.0

    def __init__(self) -> None:
        self._since: dict[Obstacle, float] = {}
        self._logged: set[Obstacle] = set()

    def lasting(self, now: float, seen: tuple[Obstacle, ...]) -> tuple[Obstacle, ...]:
        """Those seen for LASTING_SECONDS, each returned once."""
        self._since = {obstacle: self._since.get(obstacle, now) for obstacle in seen}
        self._logged &= self._since.keys()
        lasting = tuple(
            obstacle
            for obstacle, since in self._since.items()
            if obstacle not in self._logged and now - since >= self.LASTING_SECONDS
        )
        self._logged.update(lasting)
        return lasting

    def next_look(self, now: float) -> float:
        """Seconds until the next may have lasted; infinite if none is new."""
        waiting = [s for obstacle, s in self._since.items() if obstacle not in self._logged]
        return max(0.0, min(waiting, default=inf) + self.LASTING_SECONDS - now)


_EVENTS = {
    MappingState.ACTIVE: (logging.INFO, Event.MAPPING_ACTIVE),
    MappingState.INACTIVE: (logging.INFO, Event.MAPPING_INACTIVE),
    MappingState.PENDING: (logging.INFO, Event.MAPPING_PENDING),
    MappingState.CONFLICT: (logging.WARNING, Event.MAPPING_CONFLICT),
    MappingState.ERROR: (logging.WARNING, Event.MAPPING_ERROR),
}


def _log_fight(fight: Fight) -> None:
    rivals = "; ".join(fight.rivals) or "by an unknown program"
    log.warning(
        "%s is undone again and again (%s): repairs are delayed, by %g s at first",
        fight.what,
        rivals,
        fight.hold,
        extra=entry(Event.FIGHT, reason=f"{fight.what}: {rivals}"),
    )


def _log_unmapped(unmapped: Unmapped) -> None:
    log.warning(
        "%s has no external address: %s",
        unmapped.domain,
        unmapped.reason,
        extra=entry(
            Event.GUEST_UNMAPPED,
            domain=unmapped.domain,
            network=unmapped.network,
            external=unmapped.external,
            state=MappingState.ERROR.value,
            reason=unmapped.reason,
        ),
    )


def _log_status(status: MappingStatus, uplink: str | None) -> None:
    mapping = status.mapping
    level, event = _EVENTS[status.state]
    log.log(
        level,
        "%s (%s, %s) is %s%s",
        mapping.external,
        _internal(mapping),
        mapping.subject,
        status.state.value,
        f": {status.reason}" if status.reason else "",
        extra=entry(event, uplink=uplink, **status_fields(status)),
    )


def _internal(mapping: Mapping) -> str:
    """The internal address, with its source unless it was written."""
    if mapping.internal is None:
        return "address unknown"
    if mapping.source in (None, AddressSource.CONFIGURATION, AddressSource.METADATA):
        return str(mapping.internal)
    return f"{mapping.internal} by {mapping.source}"


def _summary(outcome: Outcome) -> str:
    """The one line that `systemctl status` shows."""
    states = Counter(status.state for status in outcome.statuses)
    states[MappingState.ERROR] += len(outcome.look.desired.unmapped)
    total = sum(states.values())
    line = f"{states[MappingState.ACTIVE]} of {total} mappings active"
    for state in (MappingState.ERROR, MappingState.CONFLICT, MappingState.PENDING):
        if states[state]:
            line += f", {states[state]} {state.value}"
    return line if outcome.look.libvirt else f"{line}; libvirt cannot be reached"
