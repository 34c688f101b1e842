"""The kinds of log entries, each with its journal MESSAGE_ID.

The catalog, systemd/vm-onetoone-nat.catalog, explains each by the same ID: what happened, and what
an administrator can do (`journalctl -x`). The IDs never change: programs select by them.
"""

from enum import Enum
from uuid import UUID


class Event(Enum):
    """The kind of a log entry."""

    STARTED = UUID("71d8e5a7-745a-4bef-a498-c22704d1af7a")
    STOPPED = UUID("32b4dc7b-8ed0-42b3-bd95-d51203ad0035")
    CONFIGURATION_READ = UUID("2a022eff-8b81-4a12-abb6-655460c78b47")
    CONFIGURATION_REFUSED = UUID("3dd51f23-fca3-4ca2-9cc9-77e7d10a542f")
    LIBVIRT_CONNECTED = UUID("f9f6519d-88d5-4b10-9057-2e4964e19c7d")
    LIBVIRT_UNAVAILABLE = UUID("c2ccb730-2f1c-4ec6-8755-90b7abaca1ef")
    LIBVIRT_LOST = UUID("711d9558-93c6-4f76-bd00-04e7d664bac7")
    MAPPING_ACTIVE = UUID("15992075-5f2f-42ee-97b1-1bf966cea6cc")
    MAPPING_INACTIVE = UUID("b0d656d0-8871-410e-b5fa-d61a54eeda2d")
    MAPPING_PENDING = UUID("4703d392-6263-4b4c-bbde-ae1ec413ce07")
    MAPPING_CONFLICT = UUID("bdd7d15e-9051-4a5b-a1d7-94070c5f9e09")
    MAPPING_ERROR = UUID("59d73980-f763-4adf-8245-aeb0e2e46396")
    UPLINK_CHANGED = UUID("8da6e883-b4d3-4465-a572-1d0f03110d0d")
    IP_FORWARD_ENABLED = UUID("a13d6a4c-03b6-4f68-9b83-f450675de4e2")
    DETECTION_OFF = UUID("c1be8db0-3f0d-4de0-a8b4-95c5d5a5ad1e")
    FIREWALL_REFUSES = UUID("5c3f6a53-5f5d-4ee1-8d64-1d5b6b62a3d0")
    GUEST_UNMAPPED = UUID("0a6d8f0e-4c53-4d0a-8d38-0e8e1b9f4a57")
    ALLOCATIONS_LOST = UUID("c9a4f4a1-5b0f-4b8e-9d0c-3f4a2f6f0f51")
    FIGHT = UUID("e7e2d8c1-6a3f-4f0f-9a9d-0c7f2d7cf3b9")
    RECONCILE_FAILED = UUID("7bbe301a-264a-4ba2-b8d1-01aedd6ca27b")
    INTERNAL_ERROR = UUID("3987aac2-8455-42b4-a381-a6fb0ecd8ab3")
