"""Step caching: blocks of a transformer are skipped while the first one's output hardly changes.

First Block Cache, by diffusers. What it remembers is of one job, and lives in hooks on a module; so
a job that asks for it has modules of its own, whose weights are everybody's, and its forwards are
its own. Its video is another than without, and than after a resume, which begins with no memory.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workers.sampler.families.base import Denoiser


class StepCache:
    """One job's: on the engine thread, from its first step to its last."""

    def __init__(self, denoiser: Denoiser, threshold: float) -> None:
        """The rest is skipped where the first block's output changed by up to `threshold`."""
        self._denoiser, self._threshold = denoiser, threshold
        self._twin: Denoiser | None = None

    @contextmanager
    def denoiser(self) -> Iterator[Denoiser]:
        """The job's own. An error in here leaves no memory: half of a step is in it."""
        if self._twin is None:
            self._twin = self._denoiser.with_experts(self._cached)
        try:
            yield self._twin
        except BaseException:
            self._twin = None
            raise

    def _cached(self, transformer: Any) -> Any:
        from diffusers import FirstBlockCacheConfig

        tensors = chain(transformer.parameters(), transformer.buffers())
        twin = copy.deepcopy(transformer, {id(each): each for each in tensors})
        twin.enable_cache(FirstBlockCacheConfig(threshold=self._threshold))
        return twin
