#!/bin/bash
# Measures the daemon, the usual hook script, and the limit, in network namespaces. Prints the
# figures, and updates docs/performance.md and its plot (with --quick, a copy in build/).
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
. scripts/requirements.sh

require_root
install_packages "${daemon_packages[@]}" "${lab_packages[@]}" gcc libc6-dev python3-matplotlib
make_venv .venv -e '.[test]'
mkdir -p build
# Compile to bytecode, as scripts/install.sh does.
.venv/bin/python -m compileall -q daemon
gcc -O2 -Wall -Wextra -o build/load bench/load.c

say "measuring; nothing else should run on this machine"
PYTHONPATH=tests/support exec .venv/bin/python -m bench "$@"
