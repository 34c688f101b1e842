#!/bin/bash
# Shows the product on one machine: a laptop in network namespaces, with a real libvirtd and three
# real guests. Leaves nothing behind but the packages that it installed.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
. scripts/requirements.sh

require_root
install_packages "${daemon_packages[@]}" "${lab_packages[@]}"
make_venv .venv -e '.[test]'
exec .venv/bin/python scripts/demo.py
