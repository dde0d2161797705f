"""CostBook: who pays, what is learned, and the file that must never stop a worker."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path

import pytest

from streams.core.tiers import OFF_PEAK
from streams.costs import CostBook, cost_path
from streams.engine import Task
from streams.placement import tier_of_request
from streams.settings import read_settings
from tests.builders import a_cleaned_prompt, a_job, a_latents_ready, a_request, a_task


class HandClock:
    def __init__(self) -> None:
        self.at_s = 0.0

    def now_s(self) -> float:
        return self.at_s


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


def a_book(path: Path, clock: HandClock, stage: str = "sampler") -> CostBook:
    tier_of = partial(tier_of_request, settings=read_settings(tenants={"acme": "pro"}))
    return CostBook(stage, path, tier_of, clock.now_s)


def a_sampling(**changes: object) -> Task:
    return a_task(a_cleaned_prompt(job=a_job(**changes)))


def test_a_job_pays_by_steps_rows_and_shape(tmp_path: Path, clock: HandClock) -> None:
    book = a_book(tmp_path / "costs.json", clock)
    tier, tenant_id, cost_s, _ = book.charge(a_sampling())
    assert (tier, tenant_id) == ("pro", "acme")
    assert book.charge(a_sampling(num_inference_steps=4)).cost_s == pytest.approx(2 * cost_s)
    assert book.charge(a_sampling(guidance_scale=5.0)).cost_s == pytest.approx(2 * cost_s)
    assert book.charge(a_sampling(num_frames=81)).cost_s > cost_s


def test_steps_are_no_matter_to_the_decoder(tmp_path: Path, clock: HandClock) -> None:
    book = a_book(tmp_path / "costs.json", clock, "decoder")
    long = a_latents_ready(job=a_job(num_inference_steps=50))
    assert book.charge(a_task(long)).cost_s == book.charge(a_task(a_latents_ready())).cost_s


def test_what_waits_is_priced_by_what_is_known_in_its_turn(
    tmp_path: Path, clock: HandClock
) -> None:
    book = a_book(tmp_path / "costs.json", clock)
    waits = book.charge(a_sampling())
    book.measured(a_sampling(), 50 * waits.cost_s)
    assert waits.price is not None
    assert waits.price() == book.charge(a_sampling()).cost_s == pytest.approx(50 * waits.cost_s)


def test_a_request_is_counted_among_the_tier_of_the_table(tmp_path: Path, clock: HandClock) -> None:
    book = a_book(tmp_path / "costs.json", clock, "prompt")
    assert book.charge(a_task(a_request(tier="enterprise")))[:2] == ("pro", "acme")
    assert book.charge(a_task(a_request(tenant_id="who")))[:2] == ("free", "who")
    deferrable = a_request(tenant_id="who", is_deferrable=True)
    assert book.charge(a_task(deferrable))[:2] == (OFF_PEAK, "who"), "its job is its tenant's"


def test_what_was_measured_is_remembered_by_the_next_worker(
    tmp_path: Path, clock: HandClock
) -> None:
    path = tmp_path / "costs" / "sampler-cpu.json"
    book = a_book(path, clock)
    first_s = book.charge(a_sampling()).cost_s
    assert book.measured(a_sampling(), 10 * first_s) == pytest.approx(10)
    assert not path.exists()
    book.save()
    again_s = a_book(path, clock).charge(a_sampling()).cost_s
    assert again_s == pytest.approx(10 * first_s)
    assert [each.name for each in path.parent.iterdir()] == [path.name], "no temporary file stays"


def test_it_is_written_every_half_a_minute(tmp_path: Path, clock: HandClock) -> None:
    path = tmp_path / "costs.json"
    book = a_book(path, clock)
    book.measured(a_sampling(), 1.0)
    assert not path.exists()
    clock.at_s = 31.0
    book.measured(a_sampling(), 1.0)
    written = path.read_text()
    book.measured(a_sampling(), 50.0)
    assert path.read_text() == written


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", '{"format": 2, "learned": []}', '{"format": 1}',
        '{"format": 1, "learned": [["v1", null, -1, 1]]}',
        '{"format": 1, "learned": [["v1", [1, 2], 1, 1]]}',
        '{"format": 1, "learned": [[7, null, 1, 1]]}',
        '{"format": 1, "learned": [["v1", null, 1, 1], 3]}',
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_told_and_the_prior_holds(
    text: str, tmp_path: Path, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "costs.json"
    path.write_text(text)
    with caplog.at_level(logging.WARNING):
        book = a_book(path, clock)
    assert "beginning with the prior" in caplog.text
    unread = a_book(tmp_path / "none", clock)
    assert book.charge(a_sampling()).cost_s == unread.charge(a_sampling()).cost_s
    book.save()
    assert json.loads(path.read_text()) == {"format": 1, "learned": []}


def test_where_it_cannot_be_written_work_goes_on(
    tmp_path: Path, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    book = a_book(tmp_path / "file" / "costs.json", clock)
    book.save()
    assert "costs not saved" in caplog.text
    assert book.charge(a_sampling()).cost_s > 0


def test_devices_have_files_of_their_own() -> None:
    names = {cost_path(Path("x"), "sampler", each).name for each in ("cpu float32", "H200 bf16")}
    assert names == {"sampler-cpu-float32.json", "sampler-h200-bf16.json"}
