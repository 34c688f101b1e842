"""`check`: validates the configuration, without privileges."""

import argparse

from vm_onetoone_nat.config.files import check_host, load
from vm_onetoone_nat.kernel.addresses import host_addresses


def run(arguments: argparse.Namespace) -> int:
    """Print that no fault was found. Raises ConfigError."""
    configuration = load(arguments.config)
    check_host(arguments.config, configuration, host_addresses())
    print(f"{arguments.config}: {len(configuration.mappings)} mappings, no fault found")
    return 0
