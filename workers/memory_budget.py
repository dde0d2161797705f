"""A limit on what tensors hold on the CPU, where torch counts nothing: the ladder's rehearsal.

With it a forward on the CPU has a peak that is measured and a size at which it fails, as on a GPU,
so caps by memory and the out-of-memory ladder run on real models anywhere. Each operation passes
through Python then: for tests, not for service.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryBudget(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts bytes of storages made while it is active; entered anew for each forward.

    What was made before (weights, latents) does not count.
    """

    def __init__(self, total_bytes: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total_bytes = total_bytes
        self._live_bytes = self._peak_bytes = 0
        self._freed: deque[int] = deque()  # by whichever thread lets go of a tensor
        self._counted: weakref.WeakSet[Any] = weakref.WeakSet()

    def take_peak_bytes(self) -> int:
        """The most that was held at a time since this was last asked."""
        self._settle()
        peak, self._peak_bytes = self._peak_bytes, self._live_bytes
        return peak

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation; count what it made.

        Raises:
            torch.OutOfMemoryError: it would be more than there is.
        """
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._counted:
            return  # a view
        num_bytes = storage.nbytes()
        self._counted.add(storage)
        weakref.finalize(storage, self._freed.append, num_bytes)
        self._settle()
        self._live_bytes += num_bytes
        if self._live_bytes > self.total_bytes:
            raise torch.OutOfMemoryError(
                f"CPU budget out of memory: tried to allocate {num_bytes} bytes"
            )
        self._peak_bytes = max(self._peak_bytes, self._live_bytes)

    def _settle(self) -> None:
        while self._freed:
            self._live_bytes -= self._freed.popleft()
