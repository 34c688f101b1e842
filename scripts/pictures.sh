#!/bin/bash
# Updates docs/pictures: terminals that show the output of real runs.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
. scripts/requirements.sh

require_root
install_packages "${daemon_packages[@]}" "${lab_packages[@]}"
make_venv .venv -e '.[test]'
exec .venv/bin/python scripts/pictures.py
