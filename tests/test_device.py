"""What the machine is asked to do."""

import platform

import pytest
import torch

from nej.device import keep_memory, share_cores

PAGES = (64 << 20) // 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_that_was_freed_is_used_again_without_page_faults():
    import resource

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(1024 * PAGES)  # float32, 4 bytes each
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    keep_memory()
    try:
        torch.ones(2 * 1024 * PAGES)  # before glibc 2.38 it may not fit into its equal's place
        assert faults() < PAGES / 20
    finally:
        keep_memory(False)


@pytest.mark.parametrize("processes, asked, threads", [
    ("2", None, 4), ("3", None, 2), ("16", None, 1), ("1", None, 8), ("2", "3", 8)])
def test_each_process_of_a_machine_takes_its_share_of_the_threads_once(
        processes, asked, threads, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    monkeypatch.setenv("OMP_NUM_THREADS", asked or "")  # so that it is restored
    if asked is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        share_cores()
        share_cores()
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
