"""What Prometheus' own parser reads in an exposition."""

from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families
from reports import report
from vm_onetoone_nat.service.metrics import exposition


def samples(text: str) -> dict[str, float]:
    """Every sample by its name and labels, as `name{label="value",...}`, labels in their order.

    None comes twice, and each has a help text.
    """
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):  # type: ignore[no-untyped-call]
        assert family.documentation
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            key = f"{sample.name}{{{labels}}}" if labels else sample.name
            assert key not in found
            found[key] = sample.value
    return found


def exposed(*entries: object, **changes: object) -> dict[str, float]:
    """The samples of a report of these entries."""
    told = replace(report(*entries), **changes)  # type: ignore[arg-type]
    return samples(exposition(lambda: told))
