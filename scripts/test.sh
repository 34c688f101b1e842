#!/bin/bash
# Installs what the tests need and runs all of them, or what the arguments name (as for pytest).
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
. scripts/requirements.sh

require_root
install_packages "${daemon_packages[@]}" "${lab_packages[@]}"
make_venv .venv -e '.[test]'

say "ruff, mypy"
.venv/bin/ruff format --check --quiet .
.venv/bin/ruff check --quiet .
.venv/bin/mypy --no-error-summary

say "pytest"
exec .venv/bin/pytest "$@"
