"""What an error that a device's libraries raise says of record and host; none needs a device."""

from __future__ import annotations

from typing import Any

import pytest

from streams.errors import FatalError, SickHost
from workers.torch_device import device_faults

CUDA: Any = "cuda:0"
#: torch says so of every error.
ADVICE = """
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below
might be incorrect. For debugging consider passing CUDA_LAUNCH_BLOCKING=1
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.
"""


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: device-side assert triggered",
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: misaligned address",
        "CUDA error: an illegal instruction was encountered",
        "CUDA error: unspecified launch failure",
        "CUDA error: invalid program counter",
        "CUDA error: the launch timed out and was terminated",
        "Triton Error [CUDA]: an illegal memory access was encountered",
    ],
)
def test_a_kernel_that_ends_the_context_ends_the_process(text: str) -> None:
    with pytest.raises(FatalError, match="cuda:0: ") as caught, device_faults(CUDA, 2, "9x9"):
        raise RuntimeError(text + ADVICE)
    assert caught.value.reason_code == "device_context_lost"
    assert str(caught.value) == f"cuda:0: {text}"


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: no CUDA-capable device is detected",
        "CUDA error: uncorrectable ECC error encountered",
        "CUDA error: uncorrectable NVLink error detected during the execution",
        "CUDA error: unknown error",
        "CUDA error: invalid configuration argument",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle)`",
        "NCCL error: remote process exited or there was a network error",
    ],
)
def test_what_may_be_the_device_itself_is_no_crash_of_a_record(text: str) -> None:
    with pytest.raises(SickHost) as caught, device_faults(CUDA, 2, "9x9"):
        raise RuntimeError(text + ADVICE)
    assert caught.value.reason_code == "device_failed"


def test_what_is_no_devices_error_passes_through() -> None:
    with pytest.raises(RuntimeError, match=r"^shapes differ$"), device_faults(CUDA, 2, "9x9"):
        raise RuntimeError("shapes differ")
