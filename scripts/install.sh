#!/bin/bash
# Installs vm-onetoone-nat as a system service, or upgrades it; with --uninstall, removes it.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
. scripts/requirements.sh
. scripts/files.sh

name=vm-onetoone-nat
venv=/opt/$name
command=/usr/local/bin/$name
settings=/etc/$name
state=/var/lib/$name
unit=$name.service
prefix=/usr/local

usage() {
    cat <<END
usage: scripts/install.sh                           install, or upgrade what is installed
       scripts/install.sh --uninstall [--purge]     remove all but $settings and $state;
                                                     with --purge them too
END
}

# Whether systemd runs; in an image under construction it does not.
booted() { [ -d /run/systemd/system ]; }

reload_systemd() {
    journalctl --update-catalog
    ! booted || systemctl daemon-reload
}

install_venv() {
    # With the system's python3. After an upgrade of the distribution the environment is made again.
    local version source
    version=$(/usr/bin/python3 -c 'import sys; print(*sys.version_info[:2], sep=".")')
    [ -d "$venv/lib/python$version" ] ||
        /usr/bin/python3 -m venv --clear --system-site-packages "$venv"
    # Build from a copy, so that nothing is left in the clone.
    source=$(mktemp -d)
    trap "rm -rf '$source'" EXIT
    cp -r pyproject.toml README.md daemon "$source"
    export PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1
    # As root, nothing is taken from the index that is not pinned, and nothing of it is built.
    has_libraries || "$venv/bin/pip" install -qq --no-deps --require-hashes \
        --only-binary :all: -r "$pinned_libraries"
    "$venv/bin/pip" install -qq --no-deps --no-index --no-build-isolation "$source"
    # The daemon could not cache bytecode itself: its sandbox sees this directory read-only.
    "$venv/bin/python3" -m compileall -q "$venv/lib"
}

install_settings() {
    install -d "$settings" "$settings/conf.d"
    [ -e "$settings/config.toml" ] || install -m 0644 "$configuration" "$settings/config.toml"
}

install_all() {
    install_packages "${daemon_packages[@]}" "${build_packages[@]}"
    install_libraries
    say "installing to $venv"
    install_venv
    install_files "$prefix"
    install -d "$prefix/bin"
    ln -sfn "$venv/bin/$name" "$command"
    install_settings
    systemd-sysusers "$name.conf"
    systemd-tmpfiles --create "$name.conf"
    reload_systemd
    if booted; then
        # An upgrade: the new daemon adopts what is in the kernel, and no packet is lost.
        systemctl try-restart "$unit" "$name-metrics.service"
    fi
    say "installed: $("$command" --version)"
    cat <<END
Next:
  1. edit $settings/config.toml, and try it: $name check
  2. systemctl enable --now $name
END
}

uninstall() {
    if booted && [ -e "$prefix/lib/systemd/system/$unit" ]; then
        systemctl disable --now --quiet "$unit"
    fi
    if booted && [ -e "$prefix/lib/systemd/system/$name-metrics.socket" ]; then
        # The service stops with its socket.
        systemctl disable --now --quiet "$name-metrics.socket"
    fi
    # Remove what a crashed daemon has left in the kernel. In an image the kernel is another
    # system's.
    ! booted || [ ! -x "$command" ] || "$command" cleanup
    remove_files "$prefix"
    rm -f "$command"
    rm -rf "$venv" "/run/$name"
    ! getent passwd "$name" >/dev/null || userdel "$name"
    ! getent group "$name" >/dev/null || groupdel "$name"
    reload_systemd
    ! booted || systemctl reset-failed "$unit" 2>/dev/null || true
    if [ "$1" = purge ]; then
        rm -rf "$settings" "$state"
    fi
    say "removed; the distribution's packages stay"
}

# The user and the configuration belong to the package, if it is installed.
refuse_beside_package() {
    ! is_installed "$name" || die "the package $name is installed; use apt, or remove it first"
}

case "$*" in
"")
    require_root
    refuse_beside_package
    install_all
    ;;
--uninstall)
    require_root
    refuse_beside_package
    uninstall keep
    ;;
"--uninstall --purge")
    require_root
    refuse_beside_package
    uninstall purge
    ;;
-h | --help) usage ;;
*)
    usage >&2
    exit 64
    ;;
esac
