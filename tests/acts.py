"""What a job may do to the worker that has it: told by its id, `<act>.<stage>.<anything>`.

    sigkill, segfault, oom    the process dies: by SIGKILL, a segmentation fault, the kernel for
                              want of memory
    assert                    an assert in one of its kernels ends the process's CUDA context
    fail2                     fails in a way that time may mend, and does after two tries
    weird                     fails for ever with an error that nobody foresaw
    bad                       can never be worked
    full                      too large for the device's memory

Any other id is that of a good job.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from streams.errors import InvalidRecord, OutOfMemory, RetryableError
from workers.torch_device import device_faults

MEMORY_CGROUP = Path("/sys/fs/cgroup/memory")
_LIMIT_BYTES = 300 * 1024 * 1024


def act(stage: str, job_id: str, num_before: int) -> None:
    """Do what the job's id says, if it says so of this stage, for the `num_before`-th time."""
    name, _, rest = job_id.partition(".")
    if rest.partition(".")[0] != stage:
        return
    if name == "fail2" and num_before < 2:
        raise RetryableError("not yet", reason_code="not_yet")
    if name in _ACTS:
        _ACTS[name]()


def _sigkill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _segfault() -> None:
    ctypes.string_at(0)


def _oom() -> None:
    """Take memory until the kernel kills: within a limit of this process's own."""
    group = MEMORY_CGROUP / f"reel-test-{os.getpid()}"
    group.mkdir()
    for name in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"):
        (group / name).write_text(str(_LIMIT_BYTES))
    (group / "cgroup.procs").write_text(str(os.getpid()))
    taken = []
    while True:
        taken.append(bytearray(os.urandom(1024 * 1024)))


def _assert() -> None:
    cuda: Any = "cuda:0"
    with device_faults(cuda, 1, "17x64x64"):
        raise RuntimeError("CUDA error: device-side assert triggered")


def can_limit_memory() -> bool:
    """Whether processes here may be given a memory limit (cgroup v1, as root)."""
    probe = MEMORY_CGROUP / f"reel-test-probe-{os.getpid()}"
    try:
        probe.mkdir()
        (probe / "memory.limit_in_bytes").write_text(str(_LIMIT_BYTES))
    except OSError:
        return False
    finally:
        if probe.is_dir():
            probe.rmdir()
    return True


def remove_memory_groups() -> None:
    """Of processes that have ended."""
    for group in MEMORY_CGROUP.glob("reel-test-*"):
        group.rmdir()


def _weird() -> None:
    raise ZeroDivisionError("a secret prompt")


def _bad() -> None:
    raise InvalidRecord("it is bad", reason_code="bad_shape")


def _full() -> None:
    raise OutOfMemory("no memory for it", {"shape": "17x64x64", "rows": "1", "free-bytes": "7"})


_ACTS: Mapping[str, Callable[[], None]] = {
    "sigkill": _sigkill,
    "segfault": _segfault,
    "oom": _oom,
    "assert": _assert,
    "weird": _weird,
    "bad": _bad,
    "full": _full,
}
