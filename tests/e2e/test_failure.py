"""Jobs that fail and jobs that kill, in real processes, on Apache Kafka with KIP-848 groups."""

from __future__ import annotations

import pytest

from tests import acts
from tests.e2e.scene import Scene

pytestmark = pytest.mark.kafka


def test_failures_take_their_fates_and_good_jobs_are_not_disturbed(scene: Scene) -> None:
    good = [f"good.{number}" for number in range(12)]
    jobs = ["fail2.sampler.1", "weird.decoder.1", "bad.finisher.1", "full.sampler.1"]
    scene.submit([*good[:6], *jobs, *good[6:]])
    scene.wait_for(*good, *jobs)
    assert {scene.ended(job_id) for job_id in good} == {("completed", None)}
    assert {job_id: scene.ended(job_id) for job_id in jobs} == {
        "fail2.sampler.1": ("completed", None),
        "weird.decoder.1": ("failed", "internal_error"),
        "bad.finisher.1": ("failed", "bad_shape"),
        "full.sampler.1": ("failed", "out_of_memory"),
    }
    assert scene.dead.keys() == {"weird.decoder.1", "bad.finisher.1", "full.sampler.1"}
    (weird,), (bad,), (full,) = (scene.dead[job_id] for job_id in jobs[1:])
    assert (weird["try"], weird["topic"]) == ("4", "latents.ready")
    assert "secret" not in str(weird)
    assert (bad["try"], bad["stage"]) == ("1", "finisher")
    assert {name: text for name, text in full.items() if name.startswith("evidence")} == {
        "evidence-shape": "17x64x64",
        "evidence-rows": "1",
        "evidence-free-bytes": "7",
    }


def test_ten_bad_jobs_in_a_row_make_a_worker_probe_itself_and_stop_nobody(scene: Scene) -> None:
    probes = scene.count_in_logs("probed")
    bad = [f"bad.decoder.row-{number}" for number in range(10)]
    scene.submit(bad)
    scene.wait_for(*bad)
    scene.submit(["good.after-ten"])
    scene.wait_for("good.after-ten")
    assert {scene.ended(job_id) for job_id in bad} == {("failed", "bad_shape")}
    assert [len(scene.dead[job_id]) for job_id in bad] == 10 * [1]
    assert scene.ended("good.after-ten") == ("completed", None)
    assert scene.count_in_logs("probed") > probes


def test_killers_end_as_dead_letters_and_their_neighbours_complete(scene: Scene) -> None:
    killers = {"sampler": "sigkill", "decoder": "segfault", "prompt": "assert"}
    if acts.can_limit_memory():  # else the kernel cannot be made to kill here
        killers["finisher"] = "oom"
    jobs = {place: f"{name}.{place}.1" for place, name in killers.items()}
    innocent = [f"innocent.{number}" for number in range(7)]
    num_said = len(scene.said)
    scene.submit_without_sampler([jobs["sampler"], *innocent])  # all there each time it starts
    scene.wait_for(*innocent, jobs["sampler"])
    deaths = [line for line in scene.said[num_said:] if line.startswith("sampler died")]
    assert len(deaths) == 1 + 5, "ours; two with the killer in company, three with it alone"
    scene.submit([job_id for place, job_id in jobs.items() if place != "sampler"])
    scene.wait_for(*jobs.values())
    acts.remove_memory_groups()

    assert {scene.ended(job_id) for job_id in innocent} == {("completed", None)}
    for job_id in jobs.values():
        assert scene.ended(job_id) == ("failed", "killed_workers")
        (letter,) = scene.dead[job_id]
        assert letter["crashes-alone"] == "3"
        assert int(letter["crashes"]) >= 3
    assert scene.dead[jobs["sampler"]][0]["crashes"] == "5"
    assert not scene.dead.keys() & set(innocent)
    scene.submit(["good.after"])
    scene.wait_for("good.after")
    assert scene.ended("good.after") == ("completed", None)
