"""A real worker whose sampler is given one bad seed: its latents are not numbers.

`python -m tests.poisoned STAGE` runs one, configured like any worker; any other job is worked as
ever. No request that passes admission is known to do this, and one may be found.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from streams.blobs.base import BlobStore
from streams.settings import Settings
from streams.topology import Stage
from workers.main import build_work, main
from workers.sampler.work import Conditioned, Denoising, SamplerWork
from workers.stage_work import StageWork
from workers.torch_device import DeviceSettings

POISONED_SEED = 666


class PoisonedSampler(SamplerWork):
    """Starts one seed from NaN."""

    def open(self, inputs: Conditioned) -> Denoising:
        """The job before its first step."""
        state = super().open(inputs)
        is_bad = state.job.seed == POISONED_SEED
        return replace(state, latents=state.latents * float("nan")) if is_bad else state


def build(stage: Stage, settings: Settings, store: BlobStore) -> StageWork:
    """The stage's own work; the sampler's starts one seed from NaN."""
    if stage.name != "sampler":
        return build_work(stage, settings, store)
    assert settings.model is not None, "a stack gives its workers a model"
    device = DeviceSettings(settings.device, settings.dtype, settings.torch_threads)
    return PoisonedSampler(settings.model, device, store)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:2], build))
