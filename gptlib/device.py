"""The place where one process of a run computes: its device, its rank, its precision."""

import contextlib
import os
import platform
import resource
import time
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from gptlib.fields import HardwareConfig

PEAK_SECONDS = 0.1


@dataclass(frozen=True)
class Place:
    device: torch.device
    rank: int = 0
    world: int = 1
    bf16: bool = False

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.bf16:
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def tensor(self, array: np.ndarray) -> Tensor:
        """The array on the device; from pinned memory and without waiting on CUDA."""
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def synchronize(self) -> None:
        """Wait until the device has done what it was given, so that a clock read after it is true."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def matmul_peak(self) -> float:
        """FLOP/s of a large matrix product in the run's precision: the best of many in a tenth of a second."""
        size = 512 if self.device.type == "cpu" else 8192 if self.device.type == "cuda" else 2048
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        generator = torch.Generator().manual_seed(0)  # random values: constant ones draw less power, and run faster
        a, b = (torch.randn(size, size, generator=generator).to(self.device, dtype) for _ in range(2))
        best, began = float("inf"), time.perf_counter()
        while time.perf_counter() - began < PEAK_SECONDS or best == float("inf"):
            self.synchronize()
            start = time.perf_counter()
            a @ b
            self.synchronize()
            best = min(best, time.perf_counter() - start)
        return 2 * size**3 / best

    def peak_memory(self) -> dict[str, float]:
        """MiB: on a GPU the peaks of what was allocated and reserved, and the peak of the process's resident set."""
        peaks: dict[str, float] = {}
        if self.device.type == "cuda":
            peaks["allocated_peak_mib"] = torch.cuda.max_memory_allocated(self.device) / 2**20
            peaks["reserved_peak_mib"] = torch.cuda.max_memory_reserved(self.device) / 2**20
        kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peaks | {"resident_peak_mib": kib / (2**20 if platform.system() == "Darwin" else 2**10)}

    def memory_mib(self) -> float:
        """Peak memory allocated on the GPU; on CPUs the resident set of the process. MiB."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        return psutil.Process().memory_info().rss / 2**20


def take_place(hardware: HardwareConfig, device: str) -> Place:
    """Set threads and device for this process and join the process group when the run has several ranks."""
    torch.set_num_threads(hardware.threads)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world != hardware.ranks:
        raise RuntimeError(f"this run wants {hardware.ranks} ranks but was started with {world}")
    local = torch.device(device)
    if device == "cuda":
        local = torch.device(device, int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(local)
        torch.set_float32_matmul_precision("high")
    if world > 1:
        dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(minutes=10))
    return Place(
        local, rank, world, hardware.precision == "bf16" or (hardware.precision == "auto" and device == "cuda")
    )
