# The files that are installed beside the Python package; to be sourced by bash. install.sh installs
# them below /usr/local, the Debian packages below /usr.

# Each file, and its path below that prefix.
declare -A installed_files=(
    [systemd/vm-onetoone-nat.service]=lib/systemd/system/vm-onetoone-nat.service
    [systemd/vm-onetoone-nat-metrics.service]=lib/systemd/system/vm-onetoone-nat-metrics.service
    [systemd/vm-onetoone-nat-metrics.socket]=lib/systemd/system/vm-onetoone-nat-metrics.socket
    [systemd/vm-onetoone-nat.sysusers]=lib/sysusers.d/vm-onetoone-nat.conf
    [systemd/vm-onetoone-nat.tmpfiles]=lib/tmpfiles.d/vm-onetoone-nat.conf
    [systemd/vm-onetoone-nat.catalog]=lib/systemd/catalog/vm-onetoone-nat.catalog
    [completion/vm-onetoone-nat.bash]=share/bash-completion/completions/vm-onetoone-nat
    [completion/_vm-onetoone-nat]=share/zsh/${zsh_functions:-site-functions}/_vm-onetoone-nat
)

# The same for manual pages, which scdoc renders.
declare -A manual_pages=(
    [docs/vm-onetoone-nat.8.scd]=share/man/man8/vm-onetoone-nat.8
    [docs/vm-onetoone-nat.toml.5.scd]=share/man/man5/vm-onetoone-nat.toml.5
)

# Files that earlier versions installed below PREFIX. The package manager removes those of a package.
obsolete_files=(
    lib/sysctl.d/50-vm-onetoone-nat.conf
)

# The example, which is installed as the configuration if there is none.
configuration=config.example.toml

# Installs the files below PREFIX, and removes those of an earlier version.
install_files() {
    local prefix=$1 file
    remove_obsolete_files "$prefix"
    for file in "${!installed_files[@]}"; do
        install -D -m 0644 "$file" "$prefix/${installed_files[$file]}"
    done
    for file in "${!manual_pages[@]}"; do
        scdoc <"$file" | install -D -m 0644 /dev/stdin "$prefix/${manual_pages[$file]}"
    done
}

remove_obsolete_files() {
    local prefix=$1 file
    for file in "${obsolete_files[@]}"; do
        rm -f "$prefix/$file"
    done
}

# Removes the files below PREFIX.
remove_files() {
    local prefix=$1 file
    remove_obsolete_files "$prefix"
    for file in "${installed_files[@]}" "${manual_pages[@]}"; do
        rm -f "$prefix/$file"
    done
}
