"""Threads that carry out calls nobody waits for: no futures, which cost more than a small call."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress


class IoThreads:
    """A fixed number of threads; calls are begun in the order of `submit`, and must not raise."""

    def __init__(self, num_threads: int) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"io_{number}", daemon=True)
            for number in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, call: Callable[[], None]) -> None:
        """Carry this out soon; once stopped, never."""
        self._calls.put(call)

    def stop(self) -> None:
        """Forget what has not begun, wait for what has; may be called twice."""
        with suppress(queue.Empty):
            while True:
                self._calls.get_nowait()
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
