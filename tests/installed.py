"""Where things are in a machine that the product is installed in."""

from pathlib import Path

PORT = 7000
CHECKOUT = Path(__file__).parent.parent
SOURCES = "/root/vm-onetoone-nat"
INSTALL = f"{SOURCES}/scripts/install.sh"
