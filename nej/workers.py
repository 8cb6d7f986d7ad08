"""Threads and processes that share out a piece of work, and the cores that they may use."""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor

THREADS = 4
MOST_PROCESSES = 8
PR_SET_PDEATHSIG = 1  # of Linux's prctl.h


def cores() -> int:
    """Return how many of the machine's cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def in_threads(function: Callable, items: Iterable) -> Iterator:
    """Yield function(item) of each item, in order; THREADS + 1 of them are in memory at a time."""
    with ThreadPoolExecutor(THREADS) as pool:
        coming: deque[Future] = deque()
        for item in items:
            coming.append(pool.submit(function, item))
            if len(coming) > THREADS:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def in_processes(function: Callable, items: Sequence) -> Iterator:
    """Yield function(item) of each item, in order, from processes that inherit what is loaded.

    On Linux only: elsewhere that is not safe.

    Raises:
        BrokenProcessPool: one of them was killed.
    """
    with ProcessPoolExecutor(min(len(items), cores(), MOST_PROCESSES),
                             multiprocessing.get_context("fork"), _begin) as processes:
        yield from processes.map(function, items)


def _begin() -> None:
    """Leave Ctrl-C to the process that started this one, and end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
