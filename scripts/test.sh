#!/bin/bash
# Installs what the tests need and runs them: all, or the tiers named first (unit, lab, machine).
# Whatever follows goes to pytest. `unit` needs no root where the packages are installed already.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
. scripts/requirements.sh

paths=()
while [ $# -gt 0 ]; do
    case $1 in
    unit) paths+=(tests/unit tests/model) ;;
    lab | machine) paths+=("tests/$1") ;;
    *) break ;;
    esac
    shift
done

install_packages "${daemon_packages[@]}"
if [ "${paths[*]}" != "tests/unit tests/model" ]; then
    require_root
    install_packages "${lab_packages[@]}"
fi
make_venv .venv -e '.[test]'

say "ruff, mypy"
.venv/bin/ruff format --check --quiet .
.venv/bin/ruff check --quiet .
.venv/bin/mypy --no-error-summary

say "pytest"
exec .venv/bin/pytest "${paths[@]}" "$@"
