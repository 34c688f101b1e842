#!/bin/busybox sh
# Init of a lab guest. The kernel passes `lab_…=…` of its command line as environment variables.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in $(cat /modules/order); do
    insmod "/modules/$module"
done
hostname "$lab_name"

while ! [ -e /sys/class/net/eth0 ]; do usleep 20000; done
ip link set lo up
ip address add "$lab_address" brd + dev eth0
ip link set eth0 up
ip route add default via "$lab_gateway"

for name in /sys/class/input/event*/device/name; do
    if [ "$(cat "$name")" = "Power Button" ]; then
        event=${name#/sys/class/input/}
        (head -c 1 "/dev/input/${event%%/*}" >/dev/null && poweroff -f) &
    fi
done

for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name")" != org.qemu.guest_agent.0 ] || guest-agent "/dev/${port##*/}" &
done

echo "$lab_name" >/www/index.html
export lab_name
httpd -p 0.0.0.0:80 -h /www
nc -ll -p 7 -e /bin/echo-lines &
echo "guest $lab_name is up"

while :; do
    # Not wget's own -T: with it the statically linked busybox 1.35 crashes.
    timeout 2 wget -q -O /dev/null "http://$lab_recorder/from/$lab_name" 2>/dev/null
    sleep 1
done
