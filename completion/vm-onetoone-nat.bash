# Completion for bash. The package bash-completion loads this file if it is installed; this file
# uses nothing of it.

# Guests and addresses that the daemon or libvirt knows, one per line. Names with a character that
# JSON escapes come from virsh only.
_vm_onetoone_nat_targets() {
    {
        timeout 5 vm-onetoone-nat status --json |
            sed -nE 's/^ *"(domain|external|internal)": "([^"\\]*)",$/\2/p'
        timeout 5 virsh --connect qemu:///system --readonly --quiet list --all --name
    } 2>/dev/null </dev/null | sed '/^$/d' | sort -u
}

# Splits the line up to the cursor into words as the shell would, without expanding anything.
# `words` gets the words without their quotes, `quote` the quote that is open at the end. `kept` is
# the length of the part of the last word that readline keeps; readline replaces the rest.
_vm_onetoone_nat_words() {
    local line=${COMP_LINE:0:COMP_POINT} word="" inside="" i c
    words=() quote="" kept=0
    for ((i = 0; i < ${#line}; i++)); do
        c=${line:i:1}
        if [[ $c == \\ && $quote != \' ]]; then
            ((++i))
            # Between double quotes a backslash escapes only these characters.
            [[ -z $quote || ${line:i:1} == [\\\"\$\`] ]] || word+=\\
            word+=${line:i:1} inside=1
        elif [[ -n $quote ]]; then
            if [[ $c == "$quote" ]]; then
                quote="" kept=${#word}
            else
                word+=$c
            fi
        elif [[ $c == [\"\'] ]]; then
            quote=$c kept=${#word} inside=1
        elif [[ $c == [[:space:]] ]]; then
            [[ -z $inside ]] || words+=("$word")
            word="" inside="" kept=0
        else
            word+=$c inside=1
            [[ $COMP_WORDBREAKS != *"$c"* ]] || kept=${#word}
        fi
    done
    words+=("$word")
}

# Offers the arguments that begin with the last word, quoted so that the shell reads them unchanged.
_vm_onetoone_nat_offer() {
    local word=${words[-1]} each rest
    for each in "$@"; do
        rest=${each:kept}
        [[ $each == "$word"* && -n $rest ]] || continue
        case $quote in
        \") rest=$(sed 's/[\\"$`]/\\&/g' <<<"$rest") ;;
        \') rest=${rest//\'/\'\\\'\'} ;;
        *) printf -v rest %q "$rest" ;;
        esac
        COMPREPLY+=("$rest")
    done
}

_vm_onetoone_nat() {
    local words quote kept command="" arguments=0 i targets
    _vm_onetoone_nat_words
    COMPREPLY=()
    for ((i = 1; i < ${#words[@]} - 1; i++)); do
        case ${words[i]} in
        --config | --unit) ((++i)) ;;
        -*) ;;
        *) [[ -n $command ]] && ((++arguments)) || command=${words[i]} ;;
        esac
    done
    case ${words[-2]}:${words[-1]} in
    --config:* | *:--config=*)
        # File names: readline's own completion.
        compopt -o default
        return
        ;;
    --unit:*)
        _vm_onetoone_nat_offer vm-onetoone-nat.service
        return
        ;;
    esac
    case $command:${words[-1]} in
    :-*) _vm_onetoone_nat_offer --config --verbose --version --help ;;
    :*) _vm_onetoone_nat_offer run check plan status metrics diagnose cleanup ;;
    status:-*) _vm_onetoone_nat_offer --json --watch --help ;;
    plan:-* | diagnose:-*) _vm_onetoone_nat_offer --json --help ;;
    cleanup:-*) _vm_onetoone_nat_offer --unit --help ;;
    *:-*) _vm_onetoone_nat_offer --help ;;
    diagnose:*)
        ((arguments == 0)) || return
        mapfile -t targets < <(_vm_onetoone_nat_targets)
        _vm_onetoone_nat_offer "${targets[@]}"
        ;;
    esac
}

complete -F _vm_onetoone_nat vm-onetoone-nat
