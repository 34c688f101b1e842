"""A report as metrics for Prometheus. The only module that imports prometheus_client.

Names and labels are stable: users rely on them.
"""

from collections.abc import Callable, Iterable, Iterator
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, generate_latest, make_wsgi_app
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from vm_onetoone_nat.errors import VmNatError
from vm_onetoone_nat.model.status import MappingState
from vm_onetoone_nat.report.report import BOUNDS, Entry, Passes, Report, Running

PATH = "/metrics"
"""The HTTP path of the metrics."""

_NAME = "vm_onetoone_nat"
_MAPPING = ("external", "domain")

Ask = Callable[[], Report | None]
"""Gets the daemon's report; None if no daemon answers. May raise VmNatError."""


def exposition(ask: Ask) -> str:
    """The metrics in Prometheus' text format. Raises what `ask` raises."""
    return generate_latest(_registry(ask)).decode()


def application(ask: Ask) -> WSGIApplication:
    """A WSGI application that answers GET of PATH, in a format that the client accepts.

    If `ask` raises, it answers with status 500 and the error's text.
    """
    metrics: WSGIApplication = make_wsgi_app(_registry(ask))

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def refuse(status: str, text: str, *headers: tuple[str, str]) -> Iterable[bytes]:
            start_response(status, [("Content-Type", "text/plain; charset=utf-8"), *headers])
            return [f"{text}\n".encode()]

        if environ["PATH_INFO"] != PATH:
            return refuse("404 Not Found", f"metrics are at {PATH}")
        if environ["REQUEST_METHOD"] != "GET":
            return refuse("405 Method Not Allowed", "only GET is answered", ("Allow", "GET"))
        try:
            return metrics(environ, start_response)
        except VmNatError as error:
            return refuse("500 Internal Server Error", str(error))

    return answer


def _registry(ask: Ask) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(_Collector(ask))
    return registry


class _Collector(Collector):
    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def collect(self) -> Iterator[Metric]:
        report = self._ask()
        daemon = report.daemon if report is not None else None
        yield GaugeMetricFamily(
            f"{_NAME}_up", "Whether the daemon answers.", float(daemon is not None)
        )
        if report is not None and daemon is not None:
            yield from _daemon(daemon)
            yield from _host(report)
            yield from _mappings(report.entries)

    def describe(self) -> Iterator[Metric]:
        """The families without samples, from which a client may choose (`name[]`)."""
        return _Collector(lambda: Report("", False, (), Running(0, "", 0, Passes()))).collect()


def _daemon(daemon: Running) -> Iterator[Metric]:
    passes = daemon.passes
    yield InfoMetricFamily(_NAME, "The version that runs.", {"version": daemon.version})
    yield GaugeMetricFamily(
        f"{_NAME}_uptime_seconds", "How long the daemon has been running.", daemon.seconds
    )
    yield CounterMetricFamily(
        f"{_NAME}_passes_total",
        "Passes that compared the kernel with the desired state.",
        passes.total,
    )
    yield CounterMetricFamily(
        f"{_NAME}_passes_failed_total",
        "Passes that did not reach the desired state.",
        passes.failed,
    )
    yield CounterMetricFamily(
        f"{_NAME}_passes_wrote_total", "Passes that changed something in the kernel.", passes.wrote
    )
    buckets = [*zip(map(str, BOUNDS), passes.within, strict=True), ("+Inf", passes.total)]
    yield HistogramMetricFamily(
        f"{_NAME}_pass_duration_seconds",
        "Duration of passes.",
        buckets=buckets,
        sum_value=passes.seconds,
    )
    repairs = CounterMetricFamily(
        f"{_NAME}_repairs_total",
        "Passes that repaired a change by another program, by trigger.",
        labels=["cause"],
    )
    for trigger, count in passes.repairs.items():
        repairs.add_metric([trigger], count)
    yield repairs
    errors = CounterMetricFamily(
        f"{_NAME}_internal_errors_total",
        "Exceptions that nothing expects, by the work that failed.",
        labels=["where"],
    )
    for where, count in daemon.internal_errors.items():
        errors.add_metric([where], count)
    yield errors


def _host(report: Report) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        f"{_NAME}_libvirt_connected", "Whether libvirt answers the daemon.", float(report.libvirt)
    )
    mappings = GaugeMetricFamily(
        f"{_NAME}_mappings",
        "Mappings, and guests that should have one, by state.",
        labels=["state"],
    )
    for state in MappingState:
        mappings.add_metric([state.value], report.count(state))
    yield mappings


def _mappings(entries: tuple[Entry, ...]) -> Iterator[Metric]:
    """One series for each external address and guest; a refused claim may repeat another's."""
    subjects: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        subjects.setdefault((entry.external or "", entry.domain or ""), entry)
    states = GaugeMetricFamily(
        f"{_NAME}_mapping_state",
        "1 for the state that a mapping is in, 0 for the others.",
        labels=[*_MAPPING, "state"],
    )
    for subject, entry in subjects.items():
        for state in MappingState:
            states.add_metric([*subject, state.value], float(entry.state is state))
    yield states
    for name, figure, documentation in (
        ("connections", "connections", "Translated connections, by initiator."),
        ("packets", "packets", "Packets forwarded in both directions of these connections."),
        ("bytes", "bytes", "Bytes of these packets, from the IP header on."),
        ("dropped_packets", "dropped", "Packets dropped since NAT left them alone, by sender."),
    ):
        family = CounterMetricFamily(
            f"{_NAME}_mapping_{name}_total", documentation, labels=[*_MAPPING, "initiator"]
        )
        for subject, entry in subjects.items():
            for initiator, traffic in (("lan", entry.inbound), ("guest", entry.outbound)):
                if traffic is not None:
                    family.add_metric([*subject, initiator], getattr(traffic, figure))
        yield family
