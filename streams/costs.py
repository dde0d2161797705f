"""What each record costs its stage, who pays, and the file in which that outlives the worker.

A file for each stage and kind of device, `<home>/costs/<stage>-<device>.json`, rewritten whole and
put in place at once. It holds what can be measured again: if it is lost, or cannot be read, costs
begin with the prior (streams/core/cost.py), and a warning says so.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from schemas.records import GenerationRequest, Job
from streams.core.cost import CostModel, Learned, Prior, Shape
from streams.core.fair_queue import Charge
from streams.core.shares import Bulk
from streams.core.tiers import OFF_PEAK
from streams.engine import Task

log = logging.getLogger(__name__)

#: By stage. Only how they grow with the shape matters for long: scales are measured. The sampler's
#: is near Wan 2.1 1.3B on a data centre's GPU, the others' are those of one such GPU and CPU core.
PRIORS = {
    "prompt": Prior(fixed_s=0.05),
    "sampler": Prior(fixed_s=0.01, token_s=7.6e-6),
    "decoder": Prior(fixed_s=0.05, megapixel_s=0.1),
    "finisher": Prior(fixed_s=0.05, megapixel_s=0.02),
}

_FORMAT = 1
_SAVE_EVERY_S = 30.0
_ANY = Shape(1, 16, 16)  # the cost of a prompt does not depend on the video


class CostBook:
    """The costs of one worker's stage. Thread-safe: the loop asks, I/O threads tell.

    `measured` writes the file, at most every half a minute; `save` does at once.
    """

    def __init__(
        self,
        stage: str,
        path: Path,
        tier_of: Callable[[GenerationRequest], str],
        now_s: Callable[[], float],
    ) -> None:
        """`tier_of` tells who a request, not admitted yet, is to be counted among."""
        self._path, self._tier_of, self._now_s = path, tier_of, now_s
        self._stage = stage
        self._lock = threading.Lock()
        self._saving = threading.Lock()
        self._next_save_s = now_s() + _SAVE_EVERY_S
        self._model = self._restored()

    def charge(self, task: Task) -> Charge:
        """Who pays for a decoded record, and how much, as far as is known now and later."""
        record = task.record
        price = partial(self._estimate_s, _work_of(self._stage, record))
        cost_s = price()
        wish = record if isinstance(record, GenerationRequest) else record.job
        if wish.is_deferrable:
            return Charge(OFF_PEAK, wish.tenant_id, cost_s, price)
        tier = self._tier_of(record) if isinstance(record, GenerationRequest) else record.job.tier
        return Charge(tier, wish.tenant_id, cost_s, price)

    def _estimate_s(self, work: Bulk) -> float:
        with self._lock:
            return self._model.estimate_s(*work)

    def measured(self, task: Task, compute_s: float) -> float:
        """A record was worked in so long, its share of the batch; by what factor that was off."""
        work = _work_of(self._stage, task.record)
        with self._lock:
            expected_s = self._model.estimate_s(*work)
            self._model.learn(*work, compute_s)
        if self._now_s() >= self._next_save_s:
            self.save()
        return compute_s / expected_s

    def save(self) -> None:
        """Write the file; where that fails, a warning: costs can be measured again."""
        with self._saving:
            self._next_save_s = self._now_s() + _SAVE_EVERY_S
            with self._lock:
                learned = [_as_json(each) for each in self._model.learned()]
            temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                temporary.write_text(json.dumps({"format": _FORMAT, "learned": learned}))
                temporary.replace(self._path)
            except OSError as error:
                log.warning("costs not saved", extra={"path": str(self._path), "error": str(error)})

    def _restored(self) -> CostModel:
        model = CostModel(PRIORS[self._stage])
        try:
            found = json.loads(self._path.read_text())
            if found["format"] != _FORMAT:
                raise ValueError(f"format {found['format']}")
            model.restore(_from_json(each) for each in found["learned"])
        except FileNotFoundError:
            return model
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning(
                "costs not read: beginning with the prior",
                extra={"path": str(self._path), "error": str(error)},
            )
            return CostModel(PRIORS[self._stage])
        return model


def cost_path(home: Path, stage: str, device: str) -> Path:
    """Where the costs of a stage on a kind of device are kept.

    >>> cost_path(Path("/var/reel"), "sampler", "NVIDIA H200").as_posix()
    '/var/reel/costs/sampler-nvidia-h200.json'
    """
    words = re.findall(r"[a-z0-9]+", device.lower())
    return home / "costs" / f"{stage}-{'-'.join(words)}.json"


def bulk_of(job: Job) -> Bulk:
    """The size of a job's work in the sampler, which is most of all that it costs."""
    shape = Shape(job.num_frames, job.height_px, job.width_px)
    num_rows = 2 if job.is_guided else 1
    return Bulk(job.model_version, shape, job.num_inference_steps * num_rows)


def _work_of(stage: str, record: Any) -> Bulk:
    """The size of a record's work in that stage."""
    if isinstance(record, GenerationRequest):
        return Bulk("", _ANY, 1)
    bulk = bulk_of(record.job)
    return bulk if stage == "sampler" else bulk._replace(num_units=1)


def _as_json(learned: Learned) -> list[Any]:
    return [learned.model_version, learned.shape, learned.mean, learned.weight]


def _from_json(found: Any) -> Learned:
    model_version, shape, mean, weight = found
    if not isinstance(model_version, str):
        raise TypeError(f"a model version of {type(model_version).__name__}")
    whole = None if shape is None else Shape(*(int(each) for each in shape))
    return Learned(model_version, whole, float(mean), float(weight))
