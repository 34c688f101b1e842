#!/bin/sh
# The script that udhcpc runs for a lease, in a namespace that stands for a guest.
case "$1" in
deconfig) ip -4 address flush dev "$interface" ;;
bound | renew)
    ip -4 address flush dev "$interface"
    ip address add "$ip/$mask" brd + dev "$interface"
    ip route replace default via "$router"
    ;;
esac
