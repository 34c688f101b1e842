# The packages that the other scripts install; to be sourced by bash.
#
# The bindings of libvirt, nftables and systemd come from the distribution, since they must match
# the host's libraries. None of these packages starts a service or changes the host's network.

daemon_packages=(
    python3 python3-venv python3-libvirt python3-nftables python3-prometheus-client python3-systemd
)

# The build tools of an installation, so that it needs no package index for them; and scdoc for
# manual pages.
build_packages=(python3-setuptools python3-wheel scdoc)

# The build tools of the Debian packages and the wheel.
package_packages=(
    python3 python3-pip python3-setuptools python3-wheel dpkg-dev debhelper dh-python scdoc
)

# The lab: a libvirtd without its system service, an emulator, and tools that inspect packets.
lab_packages=(
    libvirt-daemon libvirt-daemon-driver-qemu libvirt-daemon-config-network libvirt-clients
    qemu-system-x86 dnsmasq-base nftables iptables iproute2 procps util-linux
    iputils-ping iputils-arping curl conntrack tcpdump kmod busybox-static cpio
    debootstrap systemd-container strace faketime scdoc groff-base zsh
)

say() { printf '\033[1m==> %s\033[0m\n' "$*"; }

die() {
    printf '%s: %s\n' "${0##*/}" "$1" >&2
    exit 1
}

require_root() {
    [ "$(id -u)" = 0 ] || die "this needs root: run it with sudo"
}

is_installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# Installs the named packages that are missing. Uses the network only if there are any.
install_packages() {
    local missing=() package
    for package in "$@"; do
        is_installed "$package" || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    require_root
    say "installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        -o Dpkg::Use-Pty=0 "${missing[@]}" >/dev/null
}

# The libraries that the distribution may have in older versions only, each with the least version.
declare -A libraries=([python3-pydantic]=2.7 [python3-pyroute2]=0.7.7)

# The same from the package index, pinned by hashes, for Debian 12.
pinned_libraries=packaging/bookworm-requirements.txt

# Installs those that the distribution has in such a version.
install_libraries() {
    local package
    for package in "${!libraries[@]}"; do
        install_if_new_enough "$package" "${libraries[$package]}"
    done
}

# Whether the distribution's packages of all of them are installed and new enough.
has_libraries() {
    local package version
    for package in "${!libraries[@]}"; do
        version=$(dpkg-query -W -f '${Version}' "$package" 2>/dev/null) || return 1
        dpkg --compare-versions "${version:-0}" ge "${libraries[$package]}" || return 1
    done
}

# Installs PACKAGE if the distribution has VERSION or later, and it is not installed yet.
install_if_new_enough() {
    local package=$1 version=$2 candidate
    candidate=$(apt-cache policy "$package" | sed -n 's/^  Candidate: //p')
    if dpkg --compare-versions "${candidate:-0}" ge "$version"; then
        install_packages "$package"
    fi
}

# Makes the virtual environment DIRECTORY with the system's python3, and installs the remaining
# arguments into it with pip. Makes it again when the arguments or pyproject.toml change.
make_venv() {
    local directory=$1 stamp
    shift
    stamp=$({ /usr/bin/python3 --version; printf '%s\n' "$@"; cat pyproject.toml; } | sha256sum)
    [ "$(cat "$directory/stamp" 2>/dev/null)" != "$stamp" ] || return 0
    say "making the virtual environment $directory"
    rm -rf "$directory"
    /usr/bin/python3 -m venv --system-site-packages "$directory"
    PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 \
        "$directory/bin/pip" install -qq "$@"
    printf '%s\n' "$stamp" >"$directory/stamp"
}
