"""Bugs in what lets requests in."""

from __future__ import annotations

from tests.mutants.planted import Mutant

_LEDGER, _ADMISSION = "streams/core/ledger.py", "streams/core/admission.py"
_FLIGHTS, _FEED = "streams/core/flights.py", "streams/kafka/ledger_feed.py"
_RULES = ("tests/properties/test_admission.py",)
_STAGE = ("tests/unit/test_parking.py",)
_TIMERS, _MEMORY = "streams/core/timers.py", ("tests/unit/test_what_stays.py",)

MUTANTS = (
    Mutant(
        "a run goes back: what is told late of it counts again",
        _LEDGER,
        "        elif entry.level >= level:\n            return entry\n",
        "",
        _RULES,
    ),
    Mutant(
        "what ended is forgotten at once: it is let in again when that is read late",
        _LEDGER,
        "        found.ended[run_of_job] = now_s + MARKER_S\n",
        "",
        _RULES,
    ),
    Mutant(
        "a tenant has its whole quota in each of its partitions",
        _ADMISSION,
        "max(1, jobs // self._quotas.num_parts)",
        "jobs",
        _RULES,
    ),
    Mutant(
        "smaller jobs pass a parked one for ever",
        _ADMISSION,
        "line.first_deadline_s < deadline_s",
        "False",
        _RULES,
    ),
    Mutant(
        "what has ended keeps its place until its deadline, a day away",
        _LEDGER,
        "        self._until.discard((partition, run_of_job))\n        return self",
        "        return self",
        _MEMORY,
    ),
    Mutant(
        "a parked request keeps its place after it was let in",
        _FLIGHTS,
        "            self._parked_until.discard(flight.ticket)\n",
        "",
        _MEMORY,
    ),
    Mutant(
        "what was in a partition keeps its place when that is another worker's",
        _LEDGER,
        "                self._until.discard((partition, run_of_job))\n",
        "                pass\n",
        _MEMORY,
    ),
    Mutant(
        "a time that was replaced comes due",
        _TIMERS,
        "            if self._places.get(key) == place:\n",
        "            if key in self._places:\n",
        ("tests/properties/test_timers.py",),
    ),
    Mutant(
        "what comes due leaves stale times behind that nothing counts",
        _TIMERS,
        "        self.discard(first[1])\n",
        "        del self._places[first[1]]\n",
        ("tests/properties/test_timers.py",),
    ),
    Mutant(
        "a request is let in before it is known who has what",
        _FLIGHTS,
        "                self.pause(self._ours.gate.close(partition, Why.LEDGER_UNREAD))\n",
        "                pass\n",
        _STAGE,
    ),
    Mutant(
        "who names no deadline loses its place in line whenever it asks",
        "streams/core/flight.py",
        "        if self.asked_until_s is None:\n",
        "        if self.phase:\n",
        _STAGE,
    ),
    Mutant(
        "what is parked is finished before its copy is on the log",
        _FLIGHTS,
        "                    self.move(flight, Phase.PARKING)\n"
        "                    self.ask(flight)\n        return False",
        "                    self.finish(flight)\n        return False",
    ),
    Mutant(
        "nobody asks again when a share is free",
        _FLIGHTS,
        "            self._let_parked_in(freed)\n        else:",
        "        else:",
    ),
    Mutant(
        "parked requests never make way",
        "streams/core/make_way.py",
        "if self._here.admission.hides_anyone(partition.partition):",
        "if False:",
        _STAGE,
    ),
    Mutant(
        "a ledger counts as read before every topic of it is",
        _FEED,
        "if not any((each, partition) in self._behind for each in self._topics):",
        "if True:",
        ("tests/contract/test_ledger_feed.py",),
    ),
)
