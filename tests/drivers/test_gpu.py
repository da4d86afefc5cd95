"""GPUs as a driver tells them: a small C library stands in for NVIDIA's, loaded by its name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parts import need

DRIVER = r"""
#include <stdlib.h>
#include <string.h>
typedef struct { int index; } device;
static device devices[3] = {{0}, {1}, {2}};
typedef struct { unsigned long long total, free, used; } memory;

static int number(const char *name) { const char *v = getenv(name); return v ? atoi(v) : -1; }
int nvmlInitWithFlags(unsigned flags) { int e = number("FAKE_INIT"); return e > 0 ? e : 0; }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return code ? "a made-up trouble" : "success"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 3; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, device **out) {
  if ((int)index == number("FAKE_LOST")) return 15;
  *out = &devices[index];
  return 0;
}
int nvmlDeviceGetName(device *d, char *out, unsigned size) {
  strncpy(out, "Fake GPU", size);
  out[4] = '0' + d->index;
  return 0;
}
int nvmlDeviceGetUUID(device *d, char *out, unsigned size) {
  strncpy(out, "GPU-000", size);
  out[6] = '0' + d->index;
  return 0;
}
int nvmlDeviceGetMemoryInfo(device *d, memory *out) {
  out->total = (8ULL + d->index) << 30;
  out->free = out->total;
  out->used = 0;
  return 0;
}
"""
ASK = (
    "import sys, json, logging, swarmd.drivers.gpu as gpu\n"
    "assert 'pynvml' not in sys.modules, 'pynvml is loaded late'\n"
    "logging.basicConfig(format='%(levelname)s %(message)s')\n"
    "print(json.dumps([(g.index, g.name, g.memory_bytes, g.uuid) for g in gpu.list_gpus()]))\n"
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("cc")
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "nvml.c").write_text(DRIVER)
    library = str(folder / "libnvidia-ml.so.1")
    command = ["cc", "-shared", "-fPIC", "-o", library, str(folder / "nvml.c")]
    subprocess.run(command, check=True, timeout=60)
    return folder


def ask(folder: Path, **environment: str) -> tuple[list[list[object]], str]:
    """What the machine's GPUs are, and what was logged, in a process of its own."""
    scrubbed = {**os.environ, "LD_LIBRARY_PATH": str(folder), **environment}
    command = [sys.executable, "-c", ASK]
    done = subprocess.run(command, env=scrubbed, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout), done.stderr.decode()


def fake(index: int) -> list[object]:
    return [index, f"Fake{index}GPU", (8 + index) << 30, f"GPU-00{index}"]


def test_each_gpu_is_told(driver: Path) -> None:
    assert ask(driver) == ([fake(0), fake(1), fake(2)], "")


def test_a_gpu_that_fell_off_the_bus_does_not_hide_the_others(driver: Path) -> None:
    found, logged = ask(driver, FAKE_LOST="1")
    assert found == [fake(0), fake(2)]
    assert "WARNING a GPU does not answer" in logged


def test_a_driver_that_is_not_loaded_means_no_gpus(driver: Path) -> None:
    assert ask(driver, FAKE_INIT="9") == ([], "")


def test_a_broken_driver_means_no_gpus_and_a_warning(driver: Path) -> None:
    found, logged = ask(driver, FAKE_INIT="18")
    assert found == []
    assert "WARNING the GPU driver does not answer" in logged


def test_a_library_that_is_none_means_no_gpus(tmp_path: Path) -> None:
    """A file of that name stands before any real one on the path, and cannot be loaded."""
    (tmp_path / "libnvidia-ml.so.1").write_text("not a library")
    assert ask(tmp_path) == ([], "")
