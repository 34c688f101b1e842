"""A server that answers each client in a thread, and only so many at once."""

import threading
from socketserver import BaseServer, ThreadingMixIn
from typing import Any


class BoundedThreads(ThreadingMixIn, BaseServer):
    """What a server is derived from, before its kind. It sets `slots` before the first client."""

    daemon_threads = True
    slots: threading.BoundedSemaphore
    """As many as clients may be answered at once; others wait."""

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a client, as soon as there may be one more."""
        self.slots.acquire()
        try:
            super().process_request(request, client_address)
        except BaseException:
            self.slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a client, in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.slots.release()
