#!/bin/sh
# What udhcpc does with a lease, in a namespace that speaks for a guest.
case "$1" in
deconfig) ip -4 address flush dev "$interface" ;;
bound | renew)
    ip -4 address flush dev "$interface"
    ip address add "$ip/$mask" brd + dev "$interface"
    ip route replace default via "$router"
    ;;
esac
