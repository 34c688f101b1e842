#!/bin/bash
# Builds the Debian package for the release that this runs on, 12 or 13, and the wheel, into dist/.
# The optional argument is the revision of the package; a greater one is an upgrade.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
. scripts/requirements.sh

revision=${1:-1}
maintainer="The developers of vm-onetoone-nat <vm-onetoone-nat@example.org>"

. /etc/os-release
case ${VERSION_ID:-} in
# The bundled compiled modules are for this version of Python only.
12) architecture=any depends="python3 (>= 3.11), python3 (<< 3.12), " units=lib ;;
13) architecture=all depends="python3-pydantic (>= 2.7), python3-pyroute2 (>= 0.7.7), " units=usr ;;
*) die "packages are for Debian 12 and 13" ;;
esac

install_packages "${package_packages[@]}"

version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' daemon/vm_onetoone_nat/__init__.py)
full="$version+deb$VERSION_ID.$revision"
work=$(mktemp -d)
trap "rm -rf '$work'" EXIT
tree=$work/vm-onetoone-nat
mkdir "$tree"
cp -r completion daemon docs scripts systemd pyproject.toml README.md LICENSE config.example.toml \
    "$tree"
find "$tree" -name __pycache__ -prune -exec rm -rf {} +

say "the wheel"
export PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1
/usr/bin/python3 -m pip wheel -q --no-deps --no-build-isolation -w "$work/wheel" "$tree"
rm -rf "$tree/build" "$tree"/daemon/*.egg-info

if [ "$architecture" = any ]; then
    say "libraries that are too old in Debian 12"
    /usr/bin/python3 -m pip install -q --no-deps --require-hashes --only-binary :all: --no-compile \
        --target "$tree/vendor" -r "$pinned_libraries"
    # The package does not install the libraries' commands.
    rm -rf "$tree/vendor/bin"
    find "$tree/vendor" -name '*.py' -exec sed -i '1{/^#!/d}' {} +
fi

say "vm-onetoone-nat $full"
cp -r packaging/debian "$tree/debian"
for name in control copyright; do
    sed -e "s|@MAINTAINER@|$maintainer|; s|@ARCHITECTURE@|$architecture|; s|@DEPENDS@|$depends|" \
        "$tree/debian/$name.in" >"$tree/debian/$name"
    rm "$tree/debian/$name.in"
done
cat >"$tree/debian/changelog" <<END
vm-onetoone-nat ($full) $VERSION_CODENAME; urgency=medium

  * Version $version.

 -- $maintainer  $(date -R)
END
# -d: ignore the build dependency on a compiler, since nothing is compiled.
(cd "$tree" && UNITS=$units dpkg-buildpackage -b -d -us -uc >"$work/log" 2>&1) || {
    cat "$work/log" >&2
    die "the package could not be built"
}
install -d dist
install -m 0644 "$work"/*.deb "$work"/wheel/*.whl dist
printf '%s\n' dist/*"$full"*.deb dist/*.whl
