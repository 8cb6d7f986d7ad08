"""What the machine is asked to do."""

import platform

import pytest
import torch

from nej.device import keep_memory

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
        assert [faults() for _ in range(6)][-1] < PAGES / 20
    finally:
        keep_memory(False)
