"""Bugs in who goes next: what the fair queue keeps, lanes, places and residents."""

from __future__ import annotations

from tests.mutants.planted import Mutant

_QUEUE, _ACCOUNTS = "streams/core/fair_queue.py", "streams/core/accounts.py"
_TESTS = ("tests/properties/test_fair_queue.py", "tests/properties/test_ranking.py")

_RANKING, _LANES = "streams/core/ranking.py", "streams/core/lanes.py"

MUTANTS = (
    Mutant(
        "a member that went before it came first is never ranked again",
        _RANKING,
        "                member.is_ranked = False\n",
        "                pass\n",
        _TESTS,
    ),
    Mutant(
        "who was served keeps its place in front",
        _RANKING,
        "            elif member.place == place:\n",
        "            else:\n",
        _TESTS,
    ),
    Mutant(
        "whoever comes goes to the front",
        _RANKING,
        "        if standing < self._bound:\n",
        "        if self._near:\n",
        _TESTS,
    ),
    Mutant(
        "those who have gone are kept in front",
        _RANKING,
        "                del self._near[: self._at]\n                self._at = 0\n",
        "                pass\n",
        _TESTS,
    ),
    Mutant(
        "what came before its key was asked for is not among its turns",
        _ACCOUNTS,
        "                if each[TENANT] is not None:\n                    self._rank(each)\n",
        "                pass\n",
        _TESTS,
    ),
    Mutant(
        "what comes after its key was asked for is not among its turns",
        _QUEUE,
        "        if own_key.lines is not None:\n            own_key.rank_record(turn)\n",
        "",
        _TESTS,
    ),
    Mutant(
        "a key's lines are kept for ever",
        _ACCOUNTS,
        "        if self.num_ranked > 2 * self.num + 64:\n",
        "        if False:\n",
        _TESTS,
    ),
    Mutant(
        "what came before anything was measured keeps its old price",
        _QUEUE,
        "turn[COST_S] if price is None else price()",
        "turn[COST_S]",
        _TESTS,
    ),
    Mutant(
        "hands on all that was read ahead of one partition before the next",
        _LANES,
        "self._turns.append(key)",
        "self._turns.appendleft(key)",
        ("tests/properties/test_lanes.py",),
    ),
    Mutant(
        "hands on records of a partition that is held",
        _LANES,
        "return bool(lane.items) and not lane.is_held",
        "return bool(lane.items)",
        ("tests/properties/test_lanes.py",),
    ),
    Mutant(
        "a full lane is never read for again",
        _LANES,
        "            self._lanes[key].is_full = False\n",
        "",
        ("tests/properties/test_lanes.py",),
    ),
    Mutant(
        "lets a tenant into the engine beyond its share of the places",
        "streams/core/batches.py",
        "if not has_share and num_heavier",
        "if num_heavier",
        ("tests/unit/test_batches.py",),
    ),
    Mutant(
        "a job waits behind all that another tenant has in the engine",
        "streams/core/step_batcher.py",
        "each.weight / self._num_of[each.payer] /",
        "each.weight /",
        ("tests/properties/test_step_batcher.py",),
    ),
    Mutant(
        "offers places for all who are in the engine and one more",
        "streams/core/step_batcher.py",
        "max(num_in.values(), default=0) + free",
        "len(self._residents) + free",
        ("tests/properties/test_step_batcher.py",),
    ),
    Mutant(
        "gives an engine as many jobs as it may ever hold",
        "streams/core/batches.py",
        "is_full = len(self._sizes) >= self._num_places",
        "is_full = len(self._sizes) >= self._max_batches",
        ("tests/unit/test_batches.py",),
    ),
    Mutant(
        "who missed turns waits as long as who had them",
        _ACCOUNTS,
        "min(self.free_s + missed_s, cost_s)",
        "0.0",
        _TESTS,
    ),
    Mutant(
        "who missed turns has as many free",
        _ACCOUNTS,
        "min(self.free_s + missed_s, cost_s)",
        "self.free_s + missed_s",
        _TESTS,
    ),
    Mutant(
        "whose turn it is but who may not enter stands before other tiers",
        "streams/core/batches.py",
        "in queue.leads():",
        "in queue.leads()[:1]:",
        ("tests/unit/test_batches.py",),
    ),
    Mutant(
        "who floods a sampler shares its steps with who comes seldom",
        "streams/core/step_batcher.py",
        " / (_LEAST_SHARE + share)",
        "",
        ("tests/properties/test_step_batcher.py",),
    ),
    Mutant(
        "a sampler never forgets a tenant",
        "streams/core/step_batcher.py",
        " if used > least}",
        "}",
        ("tests/properties/test_step_batcher.py",),
    ),
)
