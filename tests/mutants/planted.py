"""The bugs. Each is a small change of one file; `old` must stand there exactly once."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """A bug, in words and as text to be replaced. `tests` catch it; by default the simulation."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = ()


_OFFSETS, _MAP = "streams/core/offsets.py", "streams/core/offset_map.py"
_OURS, _STAGE = "streams/core/partitions.py", "streams/core/stage.py"
_FLIGHTS, _COPIES = "streams/core/flights.py", "streams/core/copies.py"
_BATCHES, _RETRY = "streams/core/batches.py", "streams/core/retry.py"
_SAMPLER, _STEPS = "workers/sampler/work.py", "workers/step_engine.py"
_FAIR, _FAIRNESS = "streams/core/fair_queue.py", ("tests/properties/test_fair_queue.py",)
_FENCED, _LETTERS = "workers/fenced.py", "streams/letters.py"

MUTANTS = (
    # ---- offsets and rebalances
    Mutant(
        "commits early: past what is delivered and not finished",
        _OURS,
        "            known = self.trackers[partition].offset_map()\n",
        "            tracker = self.trackers[partition]\n"
        "            known = type(tracker.offset_map())(tracker.next_offset)\n",
    ),
    Mutant(
        "forgets the epoch: every assignment has the same",
        _OURS,
        "            self._epoch += 1\n",
        "            self._epoch = 1\n",
    ),
    Mutant(
        "keeps running rows after a revoke",
        _STAGE,
        "if flight.ticket.partition in gone]",
        "if flight.ticket.partition in gone and flight.phase is not Phase.RUNNING]",
    ),
    Mutant(
        "commits when partitions are lost",
        _STAGE,
        "            case ev.Lost(partitions):\n",
        "            case ev.Lost(partitions):\n                self._hand_back(partitions)\n",
    ),
    Mutant(
        "hands back nothing before partitions go",
        _STAGE,
        "                self._hand_back(partitions)\n                self._forget(partitions)\n"
        "            case ev.Lost",
        "                self._forget(partitions)\n            case ev.Lost",
    ),
    Mutant(
        "resumes from a stale map: its bits are not moved on",
        _OFFSETS,
        "        self._bits >>= offset - self._commit_offset\n",
        "        self._bits >>= 0\n",
    ),
    Mutant(
        "ignores the map of the owner before",
        _OFFSETS,
        "        self._bits = known.finished_bits ",
        "        self._bits = 0 ",
    ),
    Mutant(
        "drops the map on commit",
        _OURS,
        "            point = CommitPoint(known.offset, encode_offset_map(known))\n",
        "            point = CommitPoint(known.offset)\n",
    ),
    Mutant(
        "takes one record more than its window",
        "streams/core/window.py",
        "self._num_counted[key] < self._high and",
        "self._num_counted[key] <= self._high and",
    ),
    # ---- fairness
    Mutant(
        "charges nobody",
        _FAIR,
        "        tenant.rank += tenant.owed_s(charged_s) if tenant.free_s else charged_s\n",
        "",
        _FAIRNESS,
    ),
    Mutant(
        "ignores the weights of tiers",
        _FAIR,
        "charged_s / tier.weight",
        "charged_s",
        _FAIRNESS,
    ),
    Mutant(
        "lets a tenant save up while it is idle",
        "streams/core/accounts.py",
        "        self.rank = self.tier.served\n",
        "",
        _FAIRNESS,
    ),
    Mutant(
        "lets urgent jobs pass old ones for ever",
        _FAIR,
        "        if deadline_s is not None and deadline_s < due_s:\n",
        "        if deadline_s is not None:\n",
        _FAIRNESS,
    ),
    Mutant(
        "lets one tenant's backlog hide all others",
        "streams/core/window.py",
        "held[tenant_id] <= self._per_tenant",
        "True",
        ("tests/unit/test_window.py", "tests/properties/test_window.py"),
    ),
    # ---- starting
    Mutant(
        "marks the start after instead of before",
        _STAGE,
        "            self._entering.append(batch)\n",
        "            self._start([batch])\n",
    ),
    Mutant(
        "starts although the marker was refused",
        _STAGE,
        "        if is_ok:\n            self._start(batches)\n",
        "        if batches:\n            self._start(batches)\n",
    ),
    Mutant(
        "ignores when a retry is due",
        _FLIGHTS,
        "        if work.due_s is not None and work.due_s > self.now_s:\n",
        "        if False:\n",
    ),
    Mutant(
        "ignores deadlines",
        _FLIGHTS,
        "        return EXPIRED if deadline_s is not None and deadline_s <= self.now_s else None\n",
        "        return None\n",
    ),
    Mutant(
        "starts a run that ended while its marker was under way",
        _STAGE,
        "if ending := self._here.ending_due(flight):  # the commit",
        "if ending := None:  # the commit",
    ),
    Mutant(
        "forgets a cancel once nobody has the job in hand",
        _FLIGHTS,
        "        if self.wishes.is_cancelled(run_of_job):\n",
        "        if False:\n",
    ),
    Mutant(
        "starts while the host is sick",
        _STAGE,
        "(gate.is_closed_by(Why.STAGE_PAUSED) or gate.is_closed_by(Why.HOLDING))\n",
        "gate.is_closed_by(Why.STAGE_PAUSED)\n",
    ),
    # ---- producing and ending
    Mutant(
        "emits twice",
        _FLIGHTS,
        "        flight.outputs = outputs\n        self.ask(flight)\n",
        "        flight.outputs = outputs\n        self.ask(flight)\n        self.ask(flight)\n",
    ),
    Mutant(
        "does not wait for the dead letter's acknowledgement",
        _FLIGHTS,
        "crashes=flight.crashes)\n        self.ask(flight)\n\n    def retry",
        "crashes=flight.crashes)\n        self.ask(flight)\n"
        "        if fault.ends_job and flight.work.job_id is not None:\n"
        "            self.end(flight, Ending('failed', fault.reason_code, fault.message))\n\n"
        "    def retry",
    ),
    Mutant(
        "does not wait for the retry copy's acknowledgement",
        _FLIGHTS,
        "        flight.retry = ev.Retry(flight.ticket, work, delay_s, fault)\n"
        "        self.ask(flight)\n",
        "        flight.retry = ev.Retry(flight.ticket, work, delay_s, fault)\n"
        "        self.ask(flight)\n        self.finish(flight)\n",
    ),
    Mutant(
        "a dead letter ends no run",
        _STAGE,
        "                if fault.ends_job and flight.run_of_job is not None:\n",
        "                if False:\n",
    ),
    Mutant(
        "skips the outcome fence when a run completes",
        _FENCED,
        "            body = self._fences.end(tenant, job, run, body)\n",
        "",
    ),
    Mutant(
        "works a run that has ended",
        _FENCED,
        "            if (outcome := self._fences.outcome(tenant, job, run)) is not None:\n",
        "            if (outcome := None) is not None:\n",
    ),
    Mutant(
        "does not re-emit an ended run",
        _FENCED,
        "                return self._told_again(task, outcome)\n",
        "                return ()\n",
    ),
    Mutant(
        "emits its own result, not the one that stands",
        _FENCED,
        "        return (self._next_output(task, record, winner),)\n",
        "        record = self._decode(body, type(record))\n"
        "        return (self._next_output(task, record, body),)\n",
    ),
    Mutant(
        "re-emits a result whose blobs are lost",
        _FENCED,
        "                if all(self._store.verify(ref) for ref in blobs_of(record)):\n",
        "                if True:\n",
    ),
    Mutant(
        "works a finished stage again",
        _FENCED,
        "(found := self._fences.result(tenant, job, run, self.stage.name)) is not None:\n",
        "(found := None) is not None:\n",
    ),
    # ---- retries and crashes
    Mutant(
        "blames the batch: three crashes in company are enough",
        _RETRY,
        "    if crashes.num_alone >= CRASHES_ALONE_AT_MOST:\n",
        "    if crashes.num >= CRASHES_ALONE_AT_MOST:\n",
    ),
    Mutant(
        "never isolates a suspect",
        _RETRY,
        "    return crashes.num >= CRASHES_BEFORE_ALONE\n",
        "    return False\n",
    ),
    Mutant(
        "lets a suspect in beside others",
        _BATCHES,
        "            if self._sizes:\n                return None  # let the engine run empty\n",
        "",
    ),
    Mutant(
        "counts a crash in company as one alone",
        _RETRY,
        "crashes.num_alone + is_alone)\n",
        "crashes.num_alone + 1)\n",
    ),
    Mutant(
        "counts a clean hand-back as a crash",
        _STAGE,
        "NO_CRASHES if has_run else flight.crashes)\n",
        "if_it_crashes_now(flight.crashes, is_alone=True))\n",
    ),
    Mutant(
        "a retry copy forgets its crashes",
        _LETTERS,
        '"crashes-alone": str(work.crashes.num_alone),\n        "reason"',
        '"crashes-alone": "0",\n        "reason"',
    ),
    Mutant(
        "counts a hold as a try",
        _STAGE,
        "            if verdict is Verdict.RECORDS:\n",
        "            if verdict is not Verdict.UNKNOWN:\n",
    ),
    Mutant(
        "tries for ever",
        _RETRY,
        "        return try_number >= self.max_tries\n",
        "        return try_number >= 1000 * self.max_tries\n",
    ),
    # ---- copies, runs and requests
    Mutant(
        "finishes a copy although no higher one is here",
        _COPIES,
        "other.outranks(flight) for other in here)",
        "other.rank != flight.rank for other in here)",
    ),
    Mutant(
        "takes another's request for a copy",
        "streams/core/flight.py",
        " and self.work.identity == other.work.identity",
        "",
    ),
    Mutant(
        "works two copies of a job at once",
        _COPIES,
        "(current := self._at_work.get(job_id)) is None:\n",
        "(current := self._at_work.get(job_id)) is None or current.rank == flight.rank:\n",
    ),
    Mutant(
        "redrives without claiming",
        "streams/redrive.py",
        "    body = fences.claim_run(plan.tenant_id, plan.job_id, plan.run, body)\n",
        "",
    ),
    Mutant(
        "redrives what was completed or cancelled",
        "streams/redrive.py",
        '_FINAL = ("completed", "cancelled", "rejected")\n',
        "_FINAL = ()\n",
    ),
    Mutant(
        "takes another's request for the same",
        "streams/claims.py",
        "    if standing.request_sha256 != digest:\n",
        "    if False:\n",
    ),
    Mutant(
        "ends another's job with its own conflict",
        "workers/engine.py",
        '        ends_job = error.reason_code not in',
        '        ends_job = error.reason_code in',
    ),
    Mutant(
        "lets a retry wait for a clock that was ahead",
        "streams/core/flight.py",
        "replace(work, due_s=min(work.due_s, now_s + work.delay_s))",
        "work",
        ("tests/unit/test_stage_fates.py",),
    ),
    Mutant(
        "lets deferrable jobs share as a tier does",
        "streams/core/fair_queue.py",
        "Tier(weights.get(name, least), inf if is_off_peak else 0.0)",
        "Tier(weights.get(name, least), 0.0)",
        ("tests/properties/test_fair_queue.py",),
    ),
    Mutant(
        "lets deferrable jobs move where newcomers begin",
        "streams/core/fair_queue.py",
        "        if self._served < tier.rank < inf:\n",
        "        if self._served < tier.rank:\n",
        ("tests/properties/test_fair_queue.py",),
    ),
    Mutant(
        "lets a burst be twice what it may",
        "streams/core/rates.py",
        "        burst_s = max(60.0, gap_s)\n",
        "        burst_s = max(120.0, gap_s)\n",
        ("tests/properties/test_rates.py",),
    ),
    Mutant(
        "charges a request again that is prepared again",
        "streams/core/rates.py",
        "        if (payer, item) in self._taken_s:\n            return 0.0\n",
        "",
        ("tests/properties/test_rates.py",),
    ),
    # ---- denoising steps
    Mutant(
        "gives each job of a forward another's prompt",
        _SAMPLER,
        "        prompts = [each.text for each in states]\n",
        "        prompts = [each.text for each in reversed(states)]\n",
        ("tests/torch/test_demo_model.py",),
    ),
    Mutant(
        "swaps the guidance halves",
        _SAMPLER,
        "base + scale * (predicted[number] - base)\n",
        "predicted[number] + scale * (base - predicted[number])\n",
        ("tests/torch/test_demo_model.py",),
    ),
    Mutant(
        "steps a scheduler in place",
        "workers/sampler/schedules.py",
        "    own = copy_of_schedule(schedule)\n",
        "    own = schedule\n",
        ("tests/torch/test_families.py",),
    ),
    Mutant(
        "begins each job's draws at the seed again",
        "workers/sampler/schedules.py",
        "    torch.randn(num_drawn, generator=generator)\n",
        "",
        ("tests/torch/test_families.py",),
    ),
    Mutant(
        "goes on from a checkpoint with a scheduler that has forgotten",
        "workers/sampler/checkpoint.py",
        '        "model_outputs",\n',
        "",
        ("tests/torch/test_checkpoint.py",),
    ),
    Mutant(
        "goes on from another job's checkpoint",
        "workers/sampler/checkpoint.py",
        '    if about["identity"] != dict(identity):\n',
        "    if False:\n",
        ("tests/torch/test_checkpoint.py",),
    ),
    Mutant(
        "leaves no checkpoint when a job goes unfinished",
        _STEPS,
        "        if job.num_steps and (saving",
        "        if not job.num_steps and (saving",
        ("tests/unit/test_step_engine.py", "tests/unit/test_step_engine_ends.py"),
    ),
    Mutant(
        "tries again what found no memory",
        "workers/step_ladder.py",
        "            cap.found_no_memory(rows)\n",
        "",
        ("tests/unit/test_step_engine.py", "tests/unit/test_step_engine_ends.py"),
    ),
    Mutant(
        "keeps the rows of a cancelled job",
        _STEPS,
        "[each for each in self._jobs if each not in self._live]",
        "[]",
        ("tests/unit/test_step_engine.py", "tests/unit/test_step_engine_ends.py"),
    ),
    Mutant(
        "lets newcomers lead every step",
        "streams/core/step_batcher.py",
        "next(begun, line[0]) if self._were_passed else line[0]",
        "line[0]",
        ("tests/properties/test_step_batcher.py",),
    ),
    Mutant(
        "lets jobs of two keys share a forward",
        "streams/core/step_batcher.py",
        "each.key == first.key and each.width <= left",
        "each.width <= left",
        ("tests/properties/test_step_batcher.py",),
    ),
    Mutant(
        "shows the breaker around jobs as closed",
        "streams/core/host.py",
        '"jobs": self.breaker.is_open}',
        '"jobs": False}',
        ("tests/unit/test_host.py", "tests/unit/test_watch.py"),
    ),
    Mutant(
        "calls what only waited served",
        "tests/simulation/fairness.py",
        "cost_s = arrival.cost_s if isfinite(began_s) else 0.0",
        "cost_s = arrival.cost_s",
        ("tests/simulation/test_fairness.py",),
    ),
)  # fmt: skip
