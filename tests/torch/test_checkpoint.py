"""Checkpoints: cut anywhere and gone on with, a job gives the same bits; others' are refused."""

from __future__ import annotations

import gc
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from streams.blobs import tensors
from streams.blobs.base import BlobStore, open_store
from streams.blobs.fences import Fences, blob_prefix
from streams.blobs.sweep import Kind, kind_of
from streams.core.events import Emitted
from streams.engine import Task
from streams.errors import InvalidRecord
from tests.torch.test_sampler_steps import Sampling, renamed
from tests.torch.test_stages import Stages, a_wish, oracle, stages, work_through
from tests.unit.engine_rig import WAIT_S, wait_until
from workers.sampler import checkpoint
from workers.sampler.checkpoint import MEMORY_OF, Checkpoints, dump, identity_of, restore
from workers.sampler.work import Denoising, SamplerWork

pytestmark = pytest.mark.torch
__all__ = ["oracle", "stages"]  # fixtures

STEPS = 6
SCHEDULERS = {
    "UniPC of order 2": lambda: UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    ),
    "UniPC of order 3": lambda: UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=3
    ),
    "FlowMatchEuler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
}


def a_schedule(name: str) -> Any:
    schedule: Any = SCHEDULERS[name]()
    schedule.set_timesteps(STEPS)
    schedule.set_begin_index(0)
    return schedule


def begun(stages: Stages, name: str, number: int = 1) -> Denoising:
    """A job before its first step, with that scheduler."""
    (record,) = work_through(
        stages.prompt, [replace(a_wish(number, "cut", 2.0), num_inference_steps=STEPS)]
    )
    state = stages.sampler.open(stages.sampler.fetch(Task(record, 2, b"")))
    return replace(state, schedule=a_schedule(name))


def stepped(stages: Stages, state: Denoising) -> Denoising:
    (after,) = stages.sampler.step([state], is_split=False)
    assert isinstance(after, Denoising)
    return after


def dumped(state: Denoising) -> bytes:
    identity = identity_of(state.record, state.schedule)
    data = dump(identity, state.latents, state.schedule, state.num_done)
    assert data is not None
    return data


@pytest.mark.parametrize("name", SCHEDULERS)
def test_cut_after_any_step_and_gone_on_with_a_job_gives_the_same_bits(
    stages: Stages, name: str
) -> None:
    states = [begun(stages, name)]
    for _ in range(STEPS):
        states.append(stepped(stages, states[-1]))
    for cut in states[1:-1]:
        schedule = a_schedule(name)
        identity = identity_of(cut.record, schedule)
        found = restore(dumped(cut), identity, schedule, torch.zeros_like(cut.latents))
        assert found is not None
        latents, num_done = found
        assert num_done == cut.num_done
        state = replace(cut, latents=latents, schedule=schedule, num_done=num_done)
        while state.num_done < STEPS:
            state = stepped(stages, state)
        assert torch.equal(state.latents, states[-1].latents), f"cut after {num_done}"


@pytest.mark.parametrize(("name", "field"), [
    (name, field) for name in ("UniPC of order 2", "FlowMatchEuler")
    for field in MEMORY_OF[type(SCHEDULERS[name]()).__name__]
])  # fmt: skip
def test_nothing_that_is_stored_could_be_left_out(
    stages: Stages, name: str, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = [begun(stages, name)]
    for _ in range(STEPS):
        states.append(stepped(stages, states[-1]))
    kind = type(states[0].schedule).__name__
    less = tuple(each for each in MEMORY_OF[kind] if each != field)
    monkeypatch.setattr(checkpoint, "MEMORY_OF", {kind: less})
    cut, schedule = states[3], a_schedule(name)
    try:
        found = restore(
            dumped(cut), identity_of(cut.record, schedule), schedule, torch.zeros_like(cut.latents)
        )
        assert found is not None
        state = replace(cut, latents=found[0], schedule=schedule)
        while state.num_done < STEPS:
            state = stepped(stages, state)
    except (AttributeError, TypeError, AssertionError, UnboundLocalError):
        return  # it cannot even go on
    assert not torch.equal(state.latents, states[-1].latents)


def test_a_bfloat16_memory_comes_back_as_it_was(stages: Stages) -> None:
    state = stepped(stages, begun(stages, "UniPC of order 2"))
    state.schedule.last_sample = state.schedule.last_sample.bfloat16()
    schedule = a_schedule("UniPC of order 2")
    restore(dumped(state), identity_of(state.record, schedule), schedule, state.latents)
    assert schedule.last_sample.dtype is torch.bfloat16
    assert torch.equal(schedule.last_sample, state.schedule.last_sample)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2}, {"num_inference_steps": 7}, {"guidance_scale": 9.0},
        {"model_version": "another"}, {"height_px": 64},
    ],
)  # fmt: skip
def test_a_checkpoint_of_other_work_is_not_gone_on_with(
    stages: Stages, change: dict[str, Any]
) -> None:
    state = stepped(stages, begun(stages, "FlowMatchEuler"))
    record = replace(state.record, job=replace(state.record.job, **change))
    schedule = a_schedule("FlowMatchEuler")
    assert restore(dumped(state), identity_of(record, schedule), schedule, state.latents) is None


def test_other_embeddings_or_another_scheduler_make_it_worthless(stages: Stages) -> None:
    state = stepped(stages, begun(stages, "FlowMatchEuler"))
    other = replace(state.record, conditioning=replace(state.record.conditioning, sha256=64 * "0"))
    for record, name in ((other, "FlowMatchEuler"), (state.record, "UniPC of order 2")):
        schedule = a_schedule(name)
        identity = identity_of(record, schedule)
        assert restore(dumped(state), identity, schedule, state.latents) is None


@pytest.mark.parametrize("data", [b"", b"garbage", dumped], ids=["nothing", "garbage", "no about"])
def test_bytes_that_are_no_checkpoint_are_refused(stages: Stages, data: Any) -> None:
    state = stepped(stages, begun(stages, "FlowMatchEuler"))
    if callable(data):
        data = tensors.dump({"latents": state.latents.numpy()})
    schedule = a_schedule("FlowMatchEuler")
    with pytest.raises(InvalidRecord):
        restore(data, identity_of(state.record, schedule), schedule, state.latents)


def test_a_scheduler_whose_memory_nobody_knows_gets_none(stages: Stages) -> None:
    state = begun(stages, "FlowMatchEuler")
    schedule: Any = DDIMScheduler()
    assert dump(identity_of(state.record, schedule), state.latents, schedule, 1) is None


def test_a_worthless_checkpoint_means_a_fresh_start(
    stages: Stages, caplog: pytest.LogCaptureFixture
) -> None:
    state = stepped(stages, begun(stages, "FlowMatchEuler"))
    inputs = stages.sampler.fetch(Task(state.record, 2, b""))
    for data in (b"garbage", dumped(state)):  # the latter's scheduler is another
        fresh = stages.sampler.open(replace(inputs, checkpoint=data))
        assert fresh.num_done == 0
        assert fresh.schedule.step_index is None
        assert "from the start" in caplog.messages[-1]


# ---- in the store


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return open_store(tmp_path.as_uri())


def test_one_that_waits_to_be_stored_keeps_no_tensor_on_the_device(stages: Stages) -> None:
    state = stepped(stages, begun(stages, "UniPC of order 2", 7))
    kept = weakref.ref(state.latents)
    save = stages.sampler.snapshot(state)
    del state
    gc.collect()
    assert kept() is None, "a slow store would hold a state of each job"
    save()


def test_one_whose_result_waits_to_be_stored_keeps_nothing_on_the_device(
    stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[weakref.ref[Any]] = []
    may_go_on = threading.Event()
    result, store = SamplerWork.result, SamplerWork.store

    def noting(self: SamplerWork, state: Denoising) -> Any:
        # not the latents: on the CPU the result itself may be of the same memory
        kept.extend(weakref.ref(each) for each in (state.schedule, *state.text.values()))
        return result(self, state)

    def waiting(self: SamplerWork, *arguments: Any) -> Any:
        assert may_go_on.wait(2 * WAIT_S)
        return store(self, *arguments)

    monkeypatch.setattr(SamplerWork, "result", noting)
    monkeypatch.setattr(SamplerWork, "store", waiting)
    with Sampling(stages) as sampling:
        sampling.start(renamed([a_wish(8)], "waits"))
        try:
            wait_until(lambda: gc.collect() >= 0 and [each() for each in kept] == [None, None])
        finally:
            may_go_on.set()
        sampling.wait_for(1)
        assert isinstance(sampling.answers[0], Emitted)


def test_only_the_newest_is_kept_and_none_when_it_is_forgotten(
    stages: Stages, store: BlobStore
) -> None:
    record, kept = begun(stages, "FlowMatchEuler").record, Checkpoints(store)
    job = record.job
    assert kept.load(record) is None
    for num_done, data in enumerate((b"first", b"second", b"of another worker's step"), start=9):
        kept.save(record, min(num_done, 10), data)
        assert kept.load(record) == data
        assert len(list(store.walk(job.tenant_id))) == 1
    assert kept.load(replace(record, job=replace(job, run=2))) is None
    kept.forget(job)
    assert list(store.walk(job.tenant_id)) == []


def test_one_that_comes_late_replaces_none_that_holds_more_steps(
    stages: Stages, store: BlobStore
) -> None:
    record, kept = begun(stages, "FlowMatchEuler").record, Checkpoints(store)
    kept.save(record, 100, b"the owner's")
    for num_done in (7, 8, 9):
        kept.save(record, num_done, b"of a worker %d that lost the job" % num_done)
        assert kept.load(record) == b"the owner's"
    assert len(list(store.walk(record.job.tenant_id))) == 2
    kept.save(record, 101, b"the owner's next")
    assert len(list(store.walk(record.job.tenant_id))) == 1


def test_one_of_other_work_neither_shadows_nor_survives(stages: Stages, store: BlobStore) -> None:
    record, kept = begun(stages, "FlowMatchEuler").record, Checkpoints(store)
    kept.save(replace(record, job=replace(record.job, num_inference_steps=50)), 40, b"in full")
    assert kept.load(record) is None, "it was degraded since"
    kept.save(record, 1, b"degraded")
    assert kept.load(record) == b"degraded"
    assert len(list(store.walk(record.job.tenant_id))) == 1


def test_one_of_a_worker_of_before_is_gone_on_with_where_there_is_no_other(
    stages: Stages, store: BlobStore
) -> None:
    """Its key does not say its step."""
    record, kept = begun(stages, "FlowMatchEuler").record, Checkpoints(store)
    job = record.job
    prefix = blob_prefix(job.tenant_id, job.job_id, job.run, "sampler.checkpoint")
    store.put(prefix, [b"old"], tensors.MEDIA_TYPE)
    assert kept.load(record) == b"old"
    kept.save(record, 1, b"new")
    assert kept.load(record) == b"new"
    assert len(list(store.walk(job.tenant_id))) == 1


def test_the_sweep_knows_one_by_its_key(stages: Stages, store: BlobStore) -> None:
    record = begun(stages, "FlowMatchEuler").record
    Checkpoints(store).save(record, 999_999, b"left")
    assert [kind_of(each.key) for each in store.walk("")] == [Kind.STAGE_BLOB]


def test_a_corrupt_one_is_as_good_as_none(stages: Stages, store: BlobStore, tmp_path: Path) -> None:
    record, kept = begun(stages, "FlowMatchEuler").record, Checkpoints(store)
    kept.save(record, 1, b"sound")
    (found,) = store.walk(record.job.tenant_id)
    path = tmp_path / found.key
    path.chmod(0o644)
    path.write_bytes(b"rotten")
    assert kept.load(record) is None
    kept.save(record, 1, b"sound again")
    assert kept.load(record) == b"sound again"


def test_a_run_that_has_ended_gets_none(stages: Stages, store: BlobStore) -> None:
    record, kept = begun(stages, "FlowMatchEuler").record, Checkpoints(store)
    job = record.job
    Fences(store).end(job.tenant_id, job.job_id, job.run, b"how it ended")
    kept.save(record, 1, b"late")
    assert kept.load(record) is None


# ---- through the engine


def test_an_engine_that_ends_leaves_jobs_for_the_next_which_goes_on_to_the_same_bits(
    stages: Stages,
) -> None:
    (whole, cut) = (
        renamed([replace(a_wish(90, "gone on with"), num_inference_steps=40)], name)[0]
        for name in ("whole", "cut")
    )
    with Sampling(stages) as sampling:
        sampling.start([whole])
        sampling.wait_for(1)
        assert sampling.num_steps == 40
        want = sampling.latents(0)
    with Sampling(stages) as first:
        first.start([cut])
        wait_until(lambda: first.num_steps >= 5)
    assert not first.answers
    with Sampling(stages) as second:
        second.start([cut])
        second.wait_for(1)
        assert second.num_steps == 40 - first.num_steps
        np.testing.assert_array_equal(second.latents(0), want)
    (record,) = work_through(stages.prompt, [cut])
    assert Checkpoints(stages.store).load(record) is None, "its result is published"
