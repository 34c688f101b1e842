"""A flow, as connection tracking has it. Pure."""

from typing import NamedTuple


class Flow(NamedTuple):
    """The addresses of an entry, packed, and the number of its protocol (IPPROTO_*).

    `source` and `destination` are those of the first packet. With NAT, `reply_source` is the
    address that the destination was translated to, and `reply_destination` the one that the source
    was translated to.
    """

    source: bytes
    destination: bytes
    reply_source: bytes
    reply_destination: bytes
    protocol: int
