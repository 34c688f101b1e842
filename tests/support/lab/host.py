"""The laptop: an uplink on the LAN, a real libvirtd, the real `default` network."""

import subprocess
from ipaddress import IPv4Interface
from pathlib import Path

from .addresses import HOST, LAN_BROADCAST, LAN_CLIENT, LIBVIRT_BRIDGE, UPLINK
from .hypervisor import Hypervisor
from .lan import Lan
from .libvirtd import Libvirtd
from .namespace import CommandError
from .waiting import wait_for

# All of /run, not only our own part of it: otherwise libvirtd would talk over the machine's
# D-Bus to the machine's firewalld and machined. The others are overlays so that a mount point
# can be made in them whether or not the machine has libvirt's directories.
#
# A /dev without kvm: where KVM opens but does not work, libvirt's probe of it stalls the first
# define for two minutes, and with /dev/null in its place libvirt (9.0) finds its cached answer
# outdated and probes for four seconds in each define.
_MOUNTS = """
set -e
mount -t tmpfs tmpfs /run
mkdir /run/lab /run/lock /run/libvirt /run/vm-onetoone-nat
for top in /etc /var/lib /var/log /var/cache; do
    over=/run/lab$(echo $top | tr / -)
    mkdir $over $over.work
    mount -t overlay -o lowerdir=$top,upperdir=$over,workdir=$over.work overlay $top
    mkdir -p $top/libvirt
    mount -t tmpfs tmpfs $top/libvirt
done
mkdir -p /run/lab/dev/net /run/lab/dev/pts /run/lab/dev/shm
for node in null zero full random urandom tty ptmx net/tun; do
    : >/run/lab/dev/$node
    mount --bind /dev/$node /run/lab/dev/$node
done
for folder in pts shm; do
    mount --rbind /dev/$folder /run/lab/dev/$folder
done
ln -s /proc/self/fd /run/lab/dev/fd
ln -s /proc/self/fd/1 /run/lab/dev/stdout
ln -s /proc/self/fd/2 /run/lab/dev/stderr
mount --rbind /run/lab/dev /dev
# This machine may have the product, and another version of it.
rm -rf /etc/vm-onetoone-nat /var/lib/vm-onetoone-nat
rm -f /etc/resolv.conf
echo nameserver 192.168.1.1 >/etc/resolv.conf
"""

_WITHOUT_STP = "<bridge name='virbr0' stp='off'/>"
_DEFAULT_NETWORK = Path("/usr/share/libvirt/networks/default.xml")


class Host(Hypervisor):
    """The namespace in which libvirt, its guests' taps and the daemon live.

    Writes to /etc, /run, /var/lib, /var/log and /var/cache inside are seen by nobody else.
    `close()` ends it all at once; nothing has to be stopped first.
    """

    def __init__(self, lan: Lan, name: str = "host", address: IPv4Interface = HOST) -> None:
        super().__init__(name)
        self._address = address
        try:
            self.run("sh", "-c", _MOUNTS)
            # A link-local address would change its flags a second or two after it appears.
            self.sysctl("net.ipv6.conf.default.accept_dad", 0)
            # Or the kernel saves some of the ICMP errors by which a rejection is known.
            self.sysctl("net.ipv4.icmp_ratelimit", 0)
            self.lan = lan
            self.uplink_port = lan.attach(self, UPLINK)
            self.lease()
            self.libvirtd = Libvirtd(self)
            self.libvirtd.configure()
        except BaseException:
            self.close()
            raise

    def start_libvirt(self) -> None:
        """Start libvirtd and its `default` network, set to start with it."""
        self.libvirtd.start()
        definition = _DEFAULT_NETWORK.read_text()
        # With spanning tree a port forwards four seconds after it joins. The machines have it.
        definition = definition.replace("<bridge name='virbr0'/>", _WITHOUT_STP)
        assert _WITHOUT_STP in definition
        self.path("/run/lab/default.xml").write_text(definition)
        self.virsh("net-define", "/run/lab/default.xml")
        self.virsh("net-autostart", "default")
        self.start_network()

    def start_network(self) -> None:
        """Start `default` and wait until its bridge knows whether it has a carrier.

        The kernel finds that out within a second; a listing taken before would change by itself.
        """
        self.virsh("net-start", "default")
        state = self.path(f"/sys/class/net/{LIBVIRT_BRIDGE}/operstate")
        wait_for(lambda: state.read_text() != "unknown\n", 30, f"state of {LIBVIRT_BRIDGE}")

    @property
    def libvirt_uri(self) -> str:
        """Its libvirtd, for a program that is in none of the lab's namespaces."""
        return f"qemu+unix:///system?socket={self.path('/run/libvirt/libvirt-sock')}"

    def migrate(self, name: str, destination: "Host") -> None:
        """Have a domain that runs here go on there, without a pause that anybody notices."""
        done = subprocess.run(
            [
                *("virsh", "-q", "-c", self.libvirt_uri, "migrate", "--live", name),
                *(destination.libvirt_uri, "--migrateuri", f"tcp://{destination._address.ip}"),
            ],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if done.returncode != 0:
            raise CommandError(f"migration of {name}: {done.stderr}\n{self.libvirtd.log()}")

    def stop_network(self) -> None:
        """Stop `default`; its bridge goes away, guests stay up without a network."""
        self.virsh("net-destroy", "default")

    def lease(self) -> None:
        """What a DHCP client does with a new lease: drop all addresses, set the one leased."""
        self.run("ip", "-4", "address", "flush", "dev", UPLINK)
        address, lifetime = self._address, "valid_lft 86400 preferred_lft 86400"
        self.run(
            "ip",
            "-batch",
            "-",
            input=(
                f"address add {address} brd {LAN_BROADCAST} dev {UPLINK} scope global {lifetime}\n"
                f"route replace default via {LAN_CLIENT.ip} dev {UPLINK} proto dhcp"
                f" src {address.ip}\n"
            ),
        )
