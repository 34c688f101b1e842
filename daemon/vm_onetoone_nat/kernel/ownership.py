"""Whether our table outlives its owner, and whose it is, by a netlink socket of its own."""

import os
import socket
from errno import ENOENT

from pyroute2.netlink import NETLINK_NETFILTER

from vm_onetoone_nat.errors import KernelError
from vm_onetoone_nat.kernel.messages.nft_owner import REQUEST, Ownership, parse_ownership
from vm_onetoone_nat.kernel.messages.rtnetlink import parse_answer


class OwnershipSocket:
    """Not thread-safe."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def read(self) -> Ownership | None:
        """Flags and owner of our table; None if it does not exist. Raises KernelError."""
        self._socket.send(REQUEST)
        answer = parse_answer(self._socket.recv(1 << 16))
        for error in answer.results.values():
            if error == ENOENT:
                return None
            raise KernelError(f"our nftables table cannot be read: {os.strerror(error)}")
        return parse_ownership(answer)
