# Completion for bash. Needs nothing of the package bash-completion, which loads it where it is.

# Guests and addresses that the daemon or libvirt knows, one a line. A name that JSON has to escape
# is left to virsh.
_vm_onetoone_nat_targets() {
    {
        timeout 5 vm-onetoone-nat status --json |
            sed -nE 's/^ *"(domain|external|internal)": "([^"\\]*)",$/\2/p'
        timeout 5 virsh --connect qemu:///system --readonly --quiet list --all --name
    } 2>/dev/null </dev/null | sed '/^$/d' | sort -u
}

# Takes the line up to the cursor apart as the shell would, without expanding anything of it: the
# words without their quotes into `words`, the quote that is open at the end into `quote`. `kept` is
# how much of the last word readline leaves as it is, and replaces what follows.
_vm_onetoone_nat_words() {
    local line=${COMP_LINE:0:COMP_POINT} word="" inside="" i c
    words=() quote="" kept=0
    for ((i = 0; i < ${#line}; i++)); do
        c=${line:i:1}
        if [[ $c == \\ && $quote != \' ]]; then
            ((++i))
            # Between double quotes a backslash escapes these alone.
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

# Offers those of the arguments that begin with the last word, written so that the shell reads them
# as they are.
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
        # Files, as readline itself completes them.
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
