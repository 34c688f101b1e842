"""The README's pictures: real commands on the lab's laptop, on a terminal of 80 columns."""

import os
import pty
import shlex
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Interface
from pathlib import Path

from demo import COMMAND, ROOT, boot
from lab import DomainGuest, Host, Lan, icmp, wait_for
from lab.addresses import external, guest_name, mac_of
from rich.console import Console
from rich.text import Text

PICTURES = ROOT / "docs" / "pictures"
COLUMNS = 80
FIREWALL = """
table inet office {
    chain forward {
        type filter hook forward priority filter + 10; policy accept;
        oifname "virbr0" ip daddr 192.168.122.0/24 drop
    }
}
"""

# rich's format, without the download of a font.
FORMAT = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg"
  xml:space="preserve">
<style>
.{unique_id}-matrix {{ font-family: monospace; font-size: {char_height}px;
  line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def main() -> None:
    """All pictures."""
    PICTURES.mkdir(exist_ok=True)
    with terminal() as (slave, output):
        subprocess.run(["scripts/demo.sh"], cwd=ROOT, stdout=slave, check=True)
    draw("demo", "sudo scripts/demo.sh", "".join(output))
    with Lan() as lan, Host(lan) as host, laptop(lan, host):
        draw_command(host, "status", "status")
        draw_command(host, "diagnose", "diagnose", guest_name(1))
        host.run("nft", "-f", "-", input=FIREWALL)
        draw_command(host, "diagnose-firewall", "diagnose", guest_name(1))


@contextmanager
def laptop(lan: Lan, host: Host) -> Iterator[None]:
    """The scenario's laptop: one guest active, one off, and one address in conflict."""
    host.start_libvirt()
    guests: list[DomainGuest] = [boot(host, n) for n in (1, 2, 3)]
    for guest in guests:
        guest.wait_until_up()
    squatter = IPv4Interface((external(2), 24))
    with (
        tempfile.TemporaryDirectory() as directory,
        lan.host("printer", squatter, mac_of(external(2))),
        (Path(directory) / "log").open("w") as log,
    ):
        daemon = host.popen(*COMMAND, "run", stderr=log)
        wait_for(lambda: icmp(lan, external(1), timeout=1), 30, "a guest answers")
        for _ in range(7):
            lan.run("curl", "-sS", f"http://{external(1)}/")
        guests[2].destroy()
        wait_for(
            lambda: "is not running" in host.run(*COMMAND, "status").stdout, 30, "the guest is off"
        )
        yield
        daemon.terminate()
        daemon.wait(30)


def draw_command(host: Host, name: str, *arguments: str) -> None:
    """Draw one of the daemon's commands."""
    with terminal() as (slave, output):
        host.popen(*COMMAND, *arguments, stdout=slave, env={"TERM": "xterm"}).wait(60)
    draw(name, f"sudo vm-onetoone-nat {shlex.join(arguments)}", "".join(output))


@contextmanager
def terminal() -> Iterator[tuple[int, list[str]]]:
    """A terminal of COLUMNS columns; the list has its output when it is closed."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (50, COLUMNS))
    output: list[str] = []

    def read() -> None:
        with suppress(OSError), os.fdopen(master, errors="replace", newline="") as file:
            output.extend(iter(lambda: file.read(1), ""))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield slave, output
    finally:
        os.close(slave)
        reader.join()


def draw(name: str, command: str, output: str) -> None:
    """Draw a terminal with a command and its output."""
    lines = output.replace("\r\n", "\n").rstrip("\n").split("\n")
    width = max(COLUMNS, *(len(Text.from_ansi(line)) for line in lines))
    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, width=width, file=nowhere, force_terminal=True)
        console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
        for line in lines:
            console.print(Text.from_ansi(line), soft_wrap=True)
        svg = console.export_svg(title="vm-onetoone-nat", code_format=FORMAT, unique_id=name)
    (PICTURES / f"{name}.svg").write_text(svg)
    print(PICTURES / f"{name}.svg", flush=True)


if __name__ == "__main__":
    try:
        main()
    except (AssertionError, subprocess.SubprocessError) as error:
        sys.exit(f"pictures: {error}")
