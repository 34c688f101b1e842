"""UDP flows of which none ends: flows.py ADDRESS PORT

Some send all the time; another one begins 100 times a second. A line on the input ends that: then
each flow sends until it is answered, for five seconds at most. Prints "ready", and a line of JSON:
`flows`, `answered` of them at last, and those that were ever `refused` (ICMP port unreachable).
"""

import errno
import json
import select
import socket
import sys
import time

_LASTING = 20
_PERIOD = 0.01
_PATIENCE_SECONDS = 5.0

address = (sys.argv[1], int(sys.argv[2]))
refused: set[int] = set()
answered: set[int] = set()


def begin() -> socket.socket:
    flow = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    flow.connect(address)
    return flow


def send(flow: socket.socket) -> None:
    """Send, after what has come; the errors of what was sent before are reported first."""
    while True:
        try:
            if flow.recv(65536, socket.MSG_DONTWAIT):
                answered.add(flow.fileno())
        except BlockingIOError:
            break
        except OSError as error:
            note(flow, error)
    try:
        flow.send(b"x")
    except OSError as error:
        note(flow, error)


def note(flow: socket.socket, error: OSError) -> None:
    if error.errno == errno.ECONNREFUSED:
        refused.add(flow.fileno())


flows = [begin() for _ in range(_LASTING)]
print("ready", flush=True)
while sys.stdin not in select.select([sys.stdin], [], [], _PERIOD)[0]:
    flows.append(begin())
    for each in (*flows[:_LASTING], flows[-1]):
        send(each)
answered.clear()
until = time.monotonic() + _PATIENCE_SECONDS
while len(answered) < len(flows) and time.monotonic() < until:
    for each in flows:
        if each.fileno() not in answered:
            send(each)
    time.sleep(0.1)
print(json.dumps({"flows": len(flows), "answered": len(answered), "refused": len(refused)}))
