"""A request of a run that nobody claimed, under the id of a job at work, costs that job nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from schemas.codec import Codec
from streams import topology
from streams.core.events import Delivered, Start
from streams.intake import Intake
from tests.builders import P0, a_request, a_task, a_ticket
from tests.unit.staging import TURN, Stage


def a_delivery_of(run: int, offset: int) -> Delivered:
    intake = Intake(topology.stage("prompt"), Codec(), lambda _: None)
    return replace(intake(a_task(a_request(run=run), offset=offset)), partition=P0)


@pytest.mark.parametrize("first_run", [1, 7])
def test_both_are_worked_one_after_the_other(first_run: int) -> None:
    first, second = a_delivery_of(first_run, 0), a_delivery_of(8 - first_run, 1)
    stage = Stage()
    assert stage(first, TURN, second, TURN) == [Start(((a_ticket(0), first.work),))]
    stage.finish(a_ticket(0))
    assert stage(TURN) == [Start(((a_ticket(1), second.work),))]
