"""The daemon: wires the parts together, handles signals, reloads."""

import gc
import logging
import os
import signal
import threading
import time
from contextlib import suppress
from math import inf
from pathlib import Path

from vm_onetoone_nat import __version__
from vm_onetoone_nat.config.files import check_host, load
from vm_onetoone_nat.decide.bisect import Limits, Search
from vm_onetoone_nat.decide.fights import Fights
from vm_onetoone_nat.decide.reconcile import Look, Outcome, reconcile, remove
from vm_onetoone_nat.decide.sides import StoreSide
from vm_onetoone_nat.errors import ConfigError, KernelError
from vm_onetoone_nat.events import Event
from vm_onetoone_nat.internal_errors import OCCURRED, Work, contain, retry_seconds
from vm_onetoone_nat.journal import entry
from vm_onetoone_nat.kernel.arp import Arp
from vm_onetoone_nat.kernel.bridge import bridge_netfilter
from vm_onetoone_nat.kernel.counters import read_counters
from vm_onetoone_nat.kernel.kernel import Kernel, conflicts_path
from vm_onetoone_nat.kernel.watch import Watch
from vm_onetoone_nat.model.configuration import Configuration
from vm_onetoone_nat.model.guests import Guests
from vm_onetoone_nat.model.trigger import RELOAD, Kind, Triggers, is_news, kinds, macs
from vm_onetoone_nat.report.report import report_to_json
from vm_onetoone_nat.service.history import History
from vm_onetoone_nat.service.instance import Instance
from vm_onetoone_nat.service.notify import Notify
from vm_onetoone_nat.service.passlog import PassLog, summary
from vm_onetoone_nat.service.recent import Recent
from vm_onetoone_nat.service.runner import Runner
from vm_onetoone_nat.service.status_socket import StatusSocket, socket_path
from vm_onetoone_nat.virt.source import LibvirtSource

log = logging.getLogger(__name__)

_SLICE_SECONDS = 0.02
_LAST_SECONDS = 2.0
"""How long flushes continue after the last pass."""

_LEASE_SECONDS = 1.0
_FIRST_LOOK_SECONDS = 3.0
_LOCK_SECONDS = 5.0
"""Between two attempts to take the lock."""


class Service:
    """The daemon in the foreground. Create and run it in the main thread: it handles signals."""

    def __init__(
        self, path: Path, configuration: Configuration, runtime: Path, store: StoreSide
    ) -> None:
        self._path = path
        self._configuration = configuration
        self._instance = Instance(runtime)
        self._notify = Notify()
        self._waited_for: int | None = None
        self._instance.acquire(self._wait_for if self._notify.managed else None)
        watchdog = self._notify.watchdog_seconds or inf
        self._runner = Runner(
            self._pass, self._tick, is_news=self._is_news, longest_tick=watchdog / 3
        )
        self._arp = Arp(self._runner.notify, conflicts_path(runtime))
        self._kernel = Kernel(runtime, self._arp)
        self._store = store
        self._source = self._connect(configuration)
        self._watch = Watch(
            self._runner.notify, self._is_guest, self._kernel.portid, self._kernel.nft_portid
        )
        self._looked = threading.Event()
        self._history = History(time.monotonic())
        self._counters = Recent(read_counters)
        self._answer = Recent(self._report, lambda: self._history.passes)
        self._status = StatusSocket(socket_path(runtime), self._answer_status)
        self._fights = Fights()
        self._search = Search(time.monotonic)
        self._log = PassLog()
        self._macs: frozenset[str] = frozenset()
        self._internals: frozenset[str] = frozenset()
        self._bridge_netfilter = bridge_netfilter()
        self._reads, self._read_at = 0, -inf

    def _connect(self, configuration: Configuration) -> LibvirtSource:
        return LibvirtSource(
            configuration.libvirt_uri,
            self._runner.notify,
            guest_agent=configuration.guest_agent,
        )

    def _wait_for(self, holder: int) -> None:
        """A service waits for another daemon to end: it would be started again and again."""
        self._notify.waiting(f"Waiting for the daemon in process {holder}", 2 * _LOCK_SECONDS)
        if holder != self._waited_for:
            log.warning(
                "another vm-onetoone-nat is running (process %d): waiting until it ends",
                holder,
                extra=entry(Event.OTHER_RUNS, reason=f"process {holder}"),
            )
            self._waited_for = holder
        time.sleep(_LOCK_SECONDS)

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
        self._runner.run(self._work)
        self._notify.stopping()
        self._status.stop()
        self._source.stop()
        self._arp.stop()
        if self._notify.managed:
            # Another process does not know which flushes this one has left.
            with suppress(KernelError):
                self._kernel.work(_LAST_SECONDS)
            # Only systemd knows whether this is a stop or a restart: ExecStopPost= asks it.
            log.info("stopped; addresses and rules stay in the kernel", extra=entry(Event.STOPPED))
            return
        remove(self._configuration.fwmark, self._kernel)
        self._kernel.work(inf)
        log.info("stopped; addresses and rules are removed", extra=entry(Event.STOPPED))

    def _is_news(self, triggers: Triggers) -> bool:
        return is_news(triggers, self._watch.generation, self._kernel.generation)

    def _pass(self, triggers: Triggers) -> float | None:
        """One pass. Whatever fails, it completes a start or reload, and feeds the watchdog.

        A pass that fails has an end all the same, and is repeated. A new process would meet the
        same fault.
        """
        seen = kinds(triggers)
        if Kind.RELOAD in seen:
            self._notify.reloading()
            with contain(Work.RELOAD):
                self._reload()
        began, errors = time.monotonic(), OCCURRED.total
        outcome, line = None, "internal error: see the journal"
        with contain(Work.PASS):
            try:
                outcome = self._reconcile(triggers)
                line = summary(outcome)
            except KernelError as error:
                self._log.failed((str(error),))
                line = f"Cannot read the kernel's state: {error}"
        self._notify.alive()
        if seen & {Kind.START, Kind.RELOAD}:
            self._notify.ready(line)
        else:
            self._notify.status(line)
        if outcome is None:
            self._history.failed(began, time.monotonic())
            self._looked.set()
            return None
        self._history.passed(began, time.monotonic(), triggers, outcome)
        self._looked.set()
        self._remember(outcome.look)
        now, desired = time.monotonic(), outcome.look.desired
        for fight in self._fights.written(now, outcome.written, desired, triggers):
            self._log.fight(fight)
        self._log.passed(now, outcome, triggers)
        if outcome.failures or OCCURRED.total > errors:
            return None
        again = min(
            self._fights.next_attempt(now),
            self._log.next_look(now),
            self._next_read(now, outcome.look.guests),
        )
        # A DHCP server records a lease only after the guest has it.
        return min(again, _LEASE_SECONDS) if Kind.NEIGHBOUR in seen else again

    def _reconcile(self, triggers: Triggers) -> Outcome:
        """Raises KernelError."""
        self._bridge_netfilter = bridge_netfilter()
        self._source.ask_agents_again(macs(triggers))
        limits = Limits(self._fights.held(time.monotonic()), self._search)
        return reconcile(self._configuration, self._source, self._kernel, self._store, limits)

    def _next_read(self, now: float, guests: Guests | None) -> float:
        """The seconds until libvirt is asked again for what it failed to give, infinite for none.

        The delay grows while that keeps failing; passes in between do not count.
        """
        if guests is None or not guests.unread:
            self._reads, self._read_at = 0, -inf
            return inf
        if now >= self._read_at:
            self._reads += 1
            self._read_at = now + retry_seconds(self._reads)
        return self._read_at - now

    def _remember(self, look: Look) -> None:
        """Keep the MACs and addresses of guests, by which `_is_guest` filters neighbours."""
        if look.guests is not None:
            self._macs = look.guests.macs
        self._internals = frozenset(str(s.mapping.internal) for s in look.desired.statuses)
        guests = {s.mapping.internal for s in look.desired.statuses}
        on_bridges = look.observed.neighbours if look.observed.bridge_netfilter else ()
        self._watch.follow(frozenset(n.mac for n in on_bridges if n.address in guests))

    def _work(self) -> bool | None:
        """A slice of the flushes that passes have left; None if it failed. What failed is left."""
        try:
            left = self._kernel.work(_SLICE_SECONDS)
        except KernelError as error:
            self._log.work_failed(str(error))
            return None
        if not left:
            self._log.work_done()
        return left

    def _tick(self) -> bool:
        """Feed the watchdog, in the thread that reconciles, so that it expires if a pass hangs.

        Returns whether br_netfilter was switched: the kernel sends no notification of that.
        """
        self._notify.alive()
        return bridge_netfilter() != self._bridge_netfilter

    def _reload(self) -> None:
        try:
            configuration = load(self._path)
            observed = self._kernel.observe(configuration)
            check_host(self._path, configuration, observed.addresses)
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
        before, source = self._configuration, self._source
        if (configuration.libvirt_uri, configuration.guest_agent) != (
            before.libvirt_uri,
            before.guest_agent,
        ):
            source = self._connect(configuration)
            self._source.stop()
            source.start()
        self._configuration, self._source = configuration, source
        log.info(
            "configuration reloaded: %d mappings",
            len(configuration.mappings),
            extra=entry(Event.CONFIGURATION_READ),
        )

    def _answer_status(self) -> bytes:
        """The status socket's answer, in a thread of its own; waits for the first pass."""
        self._looked.wait(_FIRST_LOOK_SECONDS)
        return self._answer.get()

    def _report(self) -> bytes:
        counters = self._counters.get()
        report = self._history.report(
            time.monotonic(), os.getpid(), __version__, counters, OCCURRED.counts
        )
        return report_to_json(report).encode() if report is not None else b""

    def _is_guest(self, address: str, mac: str) -> bool:
        return mac in self._macs or address in self._internals
