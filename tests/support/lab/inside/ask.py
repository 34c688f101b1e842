"""One question to an echo server, run inside a namespace: ask.py tcp|udp ADDRESS PORT TIMEOUT

Prints the answer, or "!refused", "!unreachable" or "!silent".
"""

import errno
import socket
import sys


def _ask(protocol: str, address: str, port: int, timeout: float) -> str:
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect((address, port))
            connection.sendall(b"?\n")
            return connection.recv(1024).decode().strip() or "!refused"
        except (ConnectionRefusedError, ConnectionResetError, PermissionError):
            # EPERM: what this host's own output hook rejects.
            return "!refused"
        except TimeoutError:
            return "!silent"
        except OSError as error:
            if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
                return "!unreachable"
            raise


print(_ask(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
