"""The demo: a laptop, its guests and its LAN in namespaces, with the daemon running."""

import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/support"))

from lab import DomainGuest, Host, Lan, Namespace, Recorder, icmp, image, wait_for  # noqa: E402
from lab.addresses import UPLINK, external, guest_name, internal  # noqa: E402

CONFIG = ROOT / "config.example.toml"
GUESTS = (1, 2, 3)
COMMAND = (sys.executable, "-m", "vm_onetoone_nat", "--config", str(CONFIG))


def main() -> None:
    """Build the laptop, run the demo, remove everything."""
    began = time.monotonic()
    with doing("kernel and initramfs for the guests, from the distribution's packages"):
        image()
    with Lan() as lan, Host(lan) as host:
        with doing(f"a laptop on a LAN: uplink {UPLINK}, and a real libvirtd with its network"):
            host.start_libvirt()
        with doing("three real guests, under software emulation"):
            guests = [boot(host, n) for n in GUESTS]
            for guest in guests:
                guest.wait_until_up()
        before = kernel_state(host)
        show(host, "virsh", "list")

        with tempfile.TemporaryDirectory() as directory, Recorder(lan) as recorder:
            log = Path(directory) / "log"
            with doing(f"vm-onetoone-nat, on {CONFIG.name}"), log.open("w") as file:
                daemon = host.popen(*COMMAND, "run", stderr=file)
                wait_for(lambda: log.read_text().count("is active") == len(GUESTS), 30, "active")
            show_daemon(host, "status")

            title("The LAN client fetches a page from each guest by its own address")
            for n in GUESTS:
                page = show(lan, "curl", "-sS", f"http://{external(n)}/")
                expect(page.strip() == guest_name(n), "that is not the guest's page")

            title("Each guest's own connection, as the LAN client sees it")
            for n in GUESTS:
                request = recorder.next_from(guest_name(n))
                print(f"    {request.source} fetched {request.path}")
                expect(request.source == external(n), "that is not the guest's address")

            title(f"{guest_name(2)} is destroyed: its address stops answering")
            show(host, "virsh", "destroy", guest_name(2))
            wait_for(lambda: f"{external(2)}/" not in addresses(host), 10, "the address goes")
            for n in GUESTS:
                answered = icmp(lan, external(n), timeout=2)
                print(f"    ping {external(n)}: {'an answer' if answered else 'no answer'}")
                expect(answered == (n != 2), "that is wrong")
            show_daemon(host, "status")

            title("The daemon stops: it leaves nothing behind")
            daemon.terminate()
            expect(daemon.wait(30) == 0, log.read_text())
            show(host, "ip", "-4", "-brief", "address", "show", "dev", UPLINK)
            show(host, "sh", "-c", "nft list tables; iptables -S FORWARD")
            expect(kernel_state(host) == before, "the kernel is not as it was before")
            print("    rules and addresses are, byte for byte, as they were before the daemon")
    title(f"Done in {time.monotonic() - began:.0f} s; the namespaces are removed")


def boot(host: Host, n: int) -> DomainGuest:
    """One of the guests of the example configuration."""
    guest = DomainGuest(host, guest_name(n), internal(n))
    guest.define()
    guest.start()
    return guest


def addresses(host: Host) -> str:
    return host.run("ip", "-4", "-o", "address", "show", "dev", UPLINK).stdout


def kernel_state(host: Host) -> str:
    """All that the daemon may change: the ruleset, and IPv4 addresses without lifetimes."""
    ruleset = host.run("nft", "--stateless", "list", "ruleset").stdout
    listed = host.run("ip", "-4", "-brief", "address", "show").stdout
    return ruleset + listed


def title(text: str) -> None:
    print(f"\n\033[1m==> {text}\033[0m", flush=True)


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Print what is being done, and how long it took."""
    print(f"\033[1m==> {what}\033[0m ...", end="", flush=True)
    began = time.monotonic()
    yield
    print(f" {time.monotonic() - began:.1f} s", flush=True)


def show(where: Namespace, *command: str) -> str:
    """Run a command, and print it and its output as on a terminal of that host."""
    print(f"  {where.name}# {shlex.join(command)}")
    output = where.run(*command).stdout
    print("".join(f"    {line}\n" for line in output.splitlines() if line), end="", flush=True)
    return output


def show_daemon(host: Host, command: str) -> None:
    """Show one of the daemon's commands, under its installed name."""
    print(f"  {host.name}# vm-onetoone-nat {command}")
    for line in host.run(*COMMAND, command).stdout.splitlines():
        print(f"    {line}", flush=True)


def expect(true: bool, otherwise: str) -> None:
    """Exit with an error unless `true`."""
    if not true:
        sys.exit(f"demo: {otherwise}")


if __name__ == "__main__":
    try:
        main()
    except (AssertionError, subprocess.SubprocessError) as error:
        sys.exit(f"\ndemo: {error}")
