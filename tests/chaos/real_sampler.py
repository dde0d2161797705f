"""The product's sampler on the CPU, which keeps a ledger of every step and checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from schemas.records import Record, StageTiming
from streams.blobs.base import BlobStore
from streams.engine import Task
from tests.chaos.ledger import Ledger
from workers.sampler.work import Conditioned, Denoising, SamplerWork
from workers.torch_device import DeviceSettings


class RealSamplerWork(SamplerWork):
    """Steps take a little longer than the tiny model needs, so that there is a middle to die in."""

    def __init__(self, model: Path, store: BlobStore, step_s: float, ledger: Ledger) -> None:
        super().__init__(model, DeviceSettings(num_threads=1), store)
        self._step_s, self._ledger = step_s, ledger

    def fetch(self, task: Task) -> Conditioned:
        """As it is, and written down: what is saved after it begins may have come too late."""
        self._ledger.write("loading", [task.record.job.job_id])
        found = super().fetch(task)
        self._ledger.write("fetched", [found.job.job_id])
        return found

    def open(self, inputs: Conditioned) -> Denoising:
        """As it is, with the step at which it begins."""
        state = super().open(inputs)
        self._ledger.write("worked", [state.job.job_id])
        self._ledger.write("opened", [_at(state)])
        return state

    def step(self, states: Sequence[Denoising], is_split: bool) -> Sequence[Any]:
        """As it is, each job's steps counted."""
        time.sleep(self._step_s)
        outcomes = super().step(states, is_split)
        well = [each for each in outcomes if isinstance(each, Denoising)]
        self._ledger.write("stepped", [_at(each) for each in well])
        return outcomes

    def snapshot(self, state: Denoising) -> Callable[[], None]:
        """As it is; what is written down is stored."""
        save = super().snapshot(state)

        def saving() -> None:
            save()
            self._ledger.write("saved", [_at(state)])

        return saving

    def store(self, task: Task, result: Any, timing: StageTiming) -> Record:
        """As it is, and written down."""
        record = super().store(task, result, timing)
        self._ledger.write("stored", [task.record.job.job_id])
        return record


def _at(state: Denoising) -> str:
    return f"{state.job.job_id}:{state.num_done}"
