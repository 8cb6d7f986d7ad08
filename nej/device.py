"""The machine: processes, device, and whether it computes in bfloat16."""

import ctypes
import logging
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from nej import InputError
from nej.config import Config

logger = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def check_processes() -> None:
    """Raise InputError where accelerate was asked for several processes and started one.

    `accelerate launch --cpu --num_processes 2` does that without a word (accelerate issues 2741
    and 2492); it leaves MASTER_ADDR without WORLD_SIZE.
    """
    asked = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    if asked and "WORLD_SIZE" not in os.environ:
        raise InputError(
            "accelerate launch was asked for more than one process and started 1; on CPUs use "
            f"`torchrun --nproc_per_node N scripts/{Path(sys.argv[0]).name} ...`, on GPUs add "
            "--multi_gpu, or ask for --num_processes 1; and if a job script set MASTER_ADDR for "
            "a single process, unset it")


def prepare_device(config: Config) -> str:
    """Return the device's type, after setting what makes a GPU repeat its results."""
    on_cpu = (config.use_cpu or parse_flag_from_env("ACCELERATE_USE_CPU")
              or not torch.accelerator.is_available())
    wait = timedelta(seconds=config.ddp_timeout)
    # without cpu, torchrun's CPU processes stay alone
    state = PartialState(cpu=on_cpu, timeout=wait)
    share_cores()
    if state.device.type == "cpu":
        keep_memory()
    if state.device.type == "cuda":
        if os.environ.get("CUBLAS_WORKSPACE_CONFIG") != ":16:8":  # torch takes these two alone
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        # not warn_only, with which attention adds up gradients in any order
        torch.use_deterministic_algorithms(True)
        # costs time, mends nothing (and torch makes it only when it is imported)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    logger.info("%s, %d process(es), %d threads each", state.device.type, state.num_processes,
                torch.get_num_threads())
    return state.device.type


def share_cores() -> None:
    """Give each of a machine's processes its share of the threads, if nobody has said how many."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if processes > 1 and "OMP_NUM_THREADS" not in os.environ:
        share = max(1, torch.get_num_threads() // processes)
        torch.set_num_threads(share)
        os.environ["OMP_NUM_THREADS"] = str(share)  # now somebody has


def keep_memory(wanted: bool = True) -> None:
    """Let glibc keep what it frees, or give it back as usual (its limits then stay as they are).

    An array of megabytes is otherwise fetched from the system anew in each operation, a fault for
    each of its pages, which takes a fifth of a step and more.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0 if wanted else 65536)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1 if wanted else 64 << 20)
        if not wanted:
            libc.malloc_trim(0)


@contextmanager
def explained_partners() -> Iterator[None]:
    """Turn the error of a process that lost the others into an InputError with the remedy."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        lost = any(word in text.lower() for word in (
            "gloo", "nccl", "timed out", "timeout", "connection", "socket"))
        if PartialState().num_processes == 1 or not lost:
            raise
        raise InputError(
            "another process of this run does not answer any more (ddp_timeout says for how long "
            f"to wait; {text.splitlines()[0][:160]}); give the same command again, on as many "
            "machines as there are, and the run goes on from its last checkpoint") from error


def use_bf16(config: Config, device: str) -> bool:
    """Return whether to compute in bfloat16 on a device of this type ('cpu', 'cuda', ...).

    Raises:
        InputError: the config asks for it, and the GPU does not have it.
    """
    if device == "cuda":
        there = torch.cuda.is_bf16_supported(including_emulation=False)
        if config.bf16 and not there:
            raise InputError("bf16 is true, but this GPU has no bfloat16; leave it null")
    else:
        there = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return there if config.bf16 is None else config.bf16
