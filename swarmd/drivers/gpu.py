"""The node's NVIDIA GPUs. A machine without the library or the driver has none; that is no error.

pynvml is loaded late: most machines have no use for it.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec

log = logging.getLogger(__name__)

GPUS_MAX = 64


class Gpu(msgspec.Struct, frozen=True):
    index: int
    name: str
    memory_bytes: int
    uuid: str


def list_gpus() -> tuple[Gpu, ...]:
    """Ask the driver, which may take seconds when it was asleep: call it from a worker thread."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if not isinstance(error, _absences(pynvml)):
            log.warning("the GPU driver does not answer", extra={"reason": str(error)})
        return ()
    try:
        count = min(pynvml.nvmlDeviceGetCount(), GPUS_MAX)
        found = (_describe(pynvml, index) for index in range(count))
        return tuple(gpu for gpu in found if gpu is not None)
    except pynvml.NVMLError as error:
        log.warning("the GPU driver does not answer", extra={"reason": str(error)})
        return ()
    finally:
        pynvml.nvmlShutdown()


def _absences(nvml: Any) -> tuple[type[Exception], ...]:
    """pynvml makes these classes as it loads, out of the checker's sight."""
    names = ("LibraryNotFound", "DriverNotLoaded", "NotFound")
    return tuple(getattr(nvml, f"NVMLError_{name}") for name in names)


def _describe(nvml: Any, index: int) -> Gpu | None:
    """One GPU, None where it fell off the bus: the others still count."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        return Gpu(
            index,
            _text(nvml.nvmlDeviceGetName(handle)),
            int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
            _text(nvml.nvmlDeviceGetUUID(handle)),
        )
    except nvml.NVMLError as error:
        log.warning("a GPU does not answer", extra={"gpu": index, "reason": str(error)})
        return None


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")
