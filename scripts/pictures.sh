#!/bin/bash
# Makes the pictures of the README anew, in docs/pictures: terminals with what real runs print.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
. scripts/requirements.sh

require_root
install_packages "${daemon_packages[@]}" "${lab_packages[@]}"
make_venv .venv -e '.[test]'
exec .venv/bin/python scripts/pictures.py
