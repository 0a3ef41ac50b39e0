"""A connection of the driver on which requests are sent by the thread that makes them.

The driver leaves sending to a thread of its own. That has to be woken, and then waits until the
event loop's thread lets go of the interpreter: together half of what a small write takes. Here what
the socket takes is sent at once, and in one piece; the driver's thread sends what is left.

Invariants:
- Bytes leave in the order of the calls: nothing is sent here while something waits, or while the
  driver's thread sends.
- Errors are left to the driver's thread, which meets them with the same bytes.
"""

import contextlib
import threading

from cassandra.io import libevreactor  # type: ignore[import-untyped]


class PromptConnection(libevreactor.LibevConnection):  # type: ignore[misc] # it has no types
    """The driver's connection on libev. Importing this raises where the driver has no libev."""

    def __init__(self, *args: object, **options: object) -> None:
        self._sending = threading.Lock()
        super().__init__(*args, **options)

    def push(self, data: bytes) -> None:
        """Send bytes after all that were pushed before; from any thread."""
        with self._deque_lock:
            # Only who waits for nobody may send: the driver's thread takes both locks, too.
            if not self.deque and self._sending.acquire(blocking=False):
                try:
                    with contextlib.suppress(OSError):
                        data = data[self._socket.send(data) :]
                finally:
                    self._sending.release()
            if data:
                size = self.out_buffer_size
                self.deque.extend(data[at : at + size] for at in range(0, len(data), size))
                libevreactor._global_loop.notify()  # noqa: SLF001 - as the driver's own `push`

    def handle_write(self, *args: object) -> None:
        """Send what waits: called by the driver's thread when the socket takes more."""
        with self._sending:
            super().handle_write(*args)
