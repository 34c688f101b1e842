"""Kernel notifications that ask for another look: links, addresses, routes, neighbours."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink import rtnl

log = logging.getLogger(__name__)

_GROUPS = rtnl.RTMGRP_LINK | rtnl.RTMGRP_IPV4_IFADDR | rtnl.RTMGRP_IPV4_ROUTE | rtnl.RTMGRP_NEIGH
_REOPEN_SECONDS = 0.1
_KINDS = {
    "RTM_NEWLINK": "link",
    "RTM_DELLINK": "link",
    "RTM_NEWADDR": "address",
    "RTM_DELADDR": "address",
    "RTM_NEWROUTE": "route",
    "RTM_DELROUTE": "route",
}


class Watch:
    """A thread that calls `notify` for each notification that could matter.

    `neighbours` tells which guest addresses are of interest: neighbour entries change all the
    time, and most of them have nothing to do with a mapping.
    """

    def __init__(self, notify: Callable[[str], None], neighbours: Callable[[str], bool]) -> None:
        self._notify = notify
        self._neighbours = neighbours
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, name="netlink", daemon=True)

    def start(self) -> None:
        """Start listening; from the return of this on, nothing is missed."""
        self._thread.start()
        self._listening.wait()

    def _run(self) -> None:
        while True:
            try:
                self._listen()
            except OSError as error:
                # ENOBUFS, the kernel's word for notifications dropped, is the likely one. What
                # was missed is unknown, so look at everything, on a socket of full size.
                log.debug("kernel notifications were lost: %s", error)
            time.sleep(_REOPEN_SECONDS)
            self._notify("kernel: notifications were lost")

    def _listen(self) -> None:
        # Made, bound and read in one thread: pyroute2 ties a socket to the thread's event loop.
        with IPRoute() as netlink:
            netlink.bind(groups=_GROUPS)
            self._listening.set()
            while True:
                for message in netlink.get():
                    if (kind := self._interesting(message)) is not None:
                        self._notify(f"kernel: {kind}")

    def _interesting(self, message: Any) -> str | None:
        event = message["event"]
        if event == "RTM_NEWNEIGH":
            return "neighbour" if self._neighbours(message.get_attr("NDA_DST") or "") else None
        return _KINDS.get(event)
