"""Which endings a subscriber is told of, without a broker."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from schemas.records import VideoDone
from streams.blobs.base import BlobStore, open_store
from streams.blobs.fences import Fences
from streams.client.outcomes import Judge
from streams.errors import SickHost
from tests.contract.client_rig import a_done

DAY_S = 86_400.0


class AwayAtFirst:
    """A store that does not answer the first questions."""

    def __init__(self, store: BlobStore, num_refused: int) -> None:
        self._store, self.num_left = store, num_refused

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def load(self, key: str) -> bytes | None:
        if self.num_left:
            self.num_left -= 1
            raise SickHost("connection refused")
        return self._store.load(key)


def is_news(judge: Judge, done: VideoDone) -> bool:
    return asyncio.run(judge.is_effective_news(done))


def test_a_store_that_is_away_is_waited_for_longer_and_longer(tmp_path: Path) -> None:
    store = open_store((tmp_path / "blobs").as_uri())
    Fences(store).claim_run("acme", "job", 2, b"record")
    waits: list[float] = []

    async def rest(seconds: float) -> None:
        waits.append(seconds)

    judge = Judge(Fences(AwayAtFirst(store, 9)), DAY_S, rest=rest)
    assert not is_news(judge, a_done("job", "failed"))  # run 2 is claimed
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_a_final_ending_needs_no_store(tmp_path: Path) -> None:
    away = AwayAtFirst(open_store((tmp_path / "blobs").as_uri()), 1)
    judge = Judge(Fences(away), DAY_S)
    for status in ("completed", "cancelled", "rejected"):
        assert is_news(judge, a_done("job", status))
    assert away.num_left == 1


def test_an_ending_is_news_until_it_is_noted_and_again_when_it_is_forgotten() -> None:
    now_s = [1000.0]
    judge = Judge(None, 60.0, clock=lambda: now_s[0])
    assert is_news(judge, a_done("job"))
    judge.note(a_done("job"))
    assert not is_news(judge, a_done("job"))
    now_s[0] += 61.0
    judge.note(a_done("other"))
    assert is_news(judge, a_done("job"))


def test_a_time_from_the_future_is_not_believed() -> None:
    """Or one record of a host whose clock is wrong would keep what follows for ever."""
    now_s = [1000.0]
    judge = Judge(None, 60.0, clock=lambda: now_s[0])
    judge.note(a_done("job"), at_s=9e9)
    now_s[0] += 61.0
    judge.note(a_done("other"))
    assert is_news(judge, a_done("job"))
