"""`diagnose`: why a guest cannot be reached, and what to do."""

import argparse
from pathlib import Path

from vm_onetoone_nat.commands.examine import ask_daemon, examine
from vm_onetoone_nat.commands.look import look_at_host
from vm_onetoone_nat.commands.privileges import require_net_admin
from vm_onetoone_nat.commands.terminal import colour, width
from vm_onetoone_nat.config.files import check_host, load
from vm_onetoone_nat.decide.reconcile import Look, settled
from vm_onetoone_nat.diagnose.check import Diagnosis, failed
from vm_onetoone_nat.diagnose.render import diagnoses_to_json, render_diagnosis
from vm_onetoone_nat.diagnose.steps import diagnose
from vm_onetoone_nat.errors import ConfigError
from vm_onetoone_nat.model.mapping import Mapping
from vm_onetoone_nat.model.status import Cause
from vm_onetoone_nat.service.instance import runtime_path
from vm_onetoone_nat.service.status_socket import socket_path


def run(arguments: argparse.Namespace) -> int:
    """Print the checks of each mapping that matches; 1 if one failed. Raises VmNatError."""
    diagnoses = _diagnoses(arguments.config, arguments.target)
    if arguments.json:
        print(diagnoses_to_json(arguments.target, diagnoses))
    else:
        for diagnosis in diagnoses:
            print("\n".join(render_diagnosis(diagnosis, width=width(), colour=colour())))
    return 1 if any(diagnosis.first is not None for diagnosis in diagnoses) else 0


def _diagnoses(path: Path, target: str) -> list[Diagnosis]:
    """One for each mapping that matches the target, or for the fault that leaves none."""
    require_net_admin()
    try:
        configuration = load(path)
        seen = look_at_host(configuration)
        check_host(path, configuration, seen.observed.addresses)
    except ConfigError as error:
        check = failed("configuration", Cause.CONFIGURATION, "; ".join(error.problems))
        return [Diagnosis(target, (check,))]
    daemon = ask_daemon(socket_path(runtime_path()))
    statuses = [s for s in settled(seen) if _means(target, s.mapping, seen)]
    refused = [u for u in seen.desired.unmapped if target in (u.domain, u.external)]
    return [
        *(diagnose(examine(seen, s, daemon, configuration.fwmark)) for s in statuses),
        *(
            Diagnosis(u.domain, (failed("mapping", Cause.CLAIM_REFUSED, u.reason),))
            for u in refused
        ),
    ] or [
        Diagnosis(target, (failed("mapping", Cause.NO_MAPPING, f"no mapping matches '{target}'"),))
    ]


def _means(target: str, mapping: Mapping, seen: Look) -> bool:
    """Whether a mapping is for the target: a guest's name or UUID, or an address."""
    names = {str(mapping.external), str(mapping.internal), mapping.domain}
    if mapping.domain is None:
        # As `status` shows it in the GUEST column.
        names.add(f"net:{mapping.network}")
    if target in names:
        return True
    domain = seen.guests.domain(target) if seen.guests is not None else None
    return domain is not None and mapping.domain in (domain.name, domain.uuid)
