"""A foreign set that changes all the time, as a blocklist does: churn.py SIZE EACH SECONDS

Fills a set of addresses with SIZE elements, and says "ready". Then, every SECONDS until its input
ends, a transaction deletes EACH elements of it and adds as many others. Prints how many
transactions there were.
"""

import select
import subprocess
import sys
import time

_SET = "ip blocklist blocked"
_TABLE = """
table ip blocklist {
    set blocked { type ipv4_addr; flags timeout; timeout 1d; }
    chain forward { type filter hook forward priority 10; ip saddr @blocked drop; }
}
"""
_AT_ONCE = 5000


def _write(text: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)


def _command(verb: str, first: int, count: int) -> str:
    numbers = range(first, first + count)
    found = ", ".join(f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}" for n in numbers)
    return f"{verb} element {_SET} {{ {found} }}\n"


def _main(size: int, each: int, seconds: float) -> None:
    _write(_TABLE)
    for first in range(0, size, _AT_ONCE):
        _write(_command("add", first, min(_AT_ONCE, size - first)))
    print("ready", flush=True)
    begin, done = time.monotonic(), 0
    while True:
        pause = begin + done * seconds - time.monotonic()
        if select.select([sys.stdin], [], [], max(pause, 0))[0]:
            print(done, flush=True)
            return
        oldest = done * each
        _write(_command("delete", oldest, each) + _command("add", oldest + size, each))
        done += 1


_main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
