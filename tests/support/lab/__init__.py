"""A laptop, its LAN and its guests in namespaces of this machine, with a real libvirtd.

Needs root. Nothing outlives the process that made it, not even after SIGKILL.
"""

from .cache import cache_directory
from .domain import Domain, DomainGuest, IdleDomain
from .guest import NamespaceGuest, Voice, wait_until_forwarding
from .host import Host
from .image import Image, image
from .lan import Lan
from .layer import layer
from .libvirtd import Libvirtd
from .machine import Machine
from .namespace import CommandError, Namespace, NetworkOf, Process
from .root import Suite, root
from .stream_report import StreamReport
from .traffic import (
    Answer,
    EchoServer,
    Failure,
    Recorder,
    Request,
    Stream,
    icmp,
    icmp_source,
    tcp,
    udp,
)
from .waiting import WaitTimeoutError, wait_for

__all__ = [
    "Answer",
    "CommandError",
    "Domain",
    "DomainGuest",
    "EchoServer",
    "Failure",
    "Host",
    "IdleDomain",
    "Image",
    "Lan",
    "Libvirtd",
    "Machine",
    "Namespace",
    "NamespaceGuest",
    "NetworkOf",
    "Process",
    "Recorder",
    "Request",
    "Stream",
    "StreamReport",
    "Suite",
    "Voice",
    "WaitTimeoutError",
    "cache_directory",
    "icmp",
    "icmp_source",
    "image",
    "layer",
    "root",
    "tcp",
    "udp",
    "wait_for",
    "wait_until_forwarding",
]
