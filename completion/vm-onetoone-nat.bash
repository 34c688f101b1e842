# Completion for bash.

# Guests and addresses that the daemon or libvirt knows, one a line.
_vm_onetoone_nat_targets() {
    vm-onetoone-nat status --json 2>/dev/null |
        sed -nE 's/^ *"(domain|external|internal)": "(.*)",$/\2/p'
    virsh --readonly --quiet list --all --name 2>/dev/null | sed '/^$/d'
}

_vm_onetoone_nat() {
    local word=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} command="" i
    local commands="run check plan status diagnose metrics cleanup"
    COMPREPLY=()
    if [[ $previous == --config ]]; then
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$word")
        return
    fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
        --config) ((i++)) ;;
        -*) ;;
        *)
            command=${COMP_WORDS[i]}
            break
            ;;
        esac
    done
    local options="--help"
    case $command in
    "") options="--config --verbose --version --help" ;;
    plan | diagnose) options="--json --help" ;;
    status) options="--json --watch --help" ;;
    cleanup) options="--unit --help" ;;
    esac
    if [[ $word == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$word")
    elif [[ -z $command ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$commands" -- "$word")
    elif [[ $command == diagnose ]]; then
        # The line has the word as it was typed, names as they are need quotes there.
        local target typed
        eval "typed=$word" 2>/dev/null || typed=$word
        while IFS= read -r target; do
            [[ $target != "$typed"* ]] || COMPREPLY+=("$(printf '%q' "$target")")
        done < <(_vm_onetoone_nat_targets | sort -u)
    fi
}

complete -F _vm_onetoone_nat vm-onetoone-nat
