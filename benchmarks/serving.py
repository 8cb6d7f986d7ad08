"""Measure the service under load, beside what people would otherwise write.

    python scripts/export.py models/quickstart
    python benchmarks/serving.py models/quickstart
    python benchmarks/serving.py models/quickstart --only nej --overload 10

In turn, on the same model and machine: nej (scripts/serve.py as it is), transformers.pipeline
behind FastAPI, LitServe with batches in float32 and in bfloat16 (`pip install litserve`; see
serving_rivals.py). Clients each send a paper, wait for the answer and send the next, in a
connection of their own; papers are drawn from a CSV, with the lengths that they have. Memory is
the proportional set size of all processes of a server, the most that was seen.

--overload sends twice what the service can take for some minutes, each request in a connection of
its own: each must be answered, or refused with 429 or 503 and Retry-After; then it must be as fast
as before. Exit code 1 if not.
"""

import argparse
import asyncio
import csv
import json
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
RIVALS = ("nej", "pipeline", "litserve", "litserve-bf16")
PAPERS = 2000
WARM_UP_SECONDS = 2.0


def bodies(path: Path, seed: int = 0) -> list[bytes]:
    """Return requests of papers of a CSV, drawn at random."""
    csv.field_size_limit(1 << 24)
    with open(path, encoding="utf-8", newline="") as file:
        rows = [(row["title"], row["summary"]) for row in csv.DictReader(file)]
    drawn = random.Random(seed).sample(rows, min(PAPERS, len(rows)))
    return [json.dumps({"title": title, "summary": summary}).encode() for title, summary in drawn]


async def send(body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
               ) -> tuple[int, dict[str, str]]:
    """Send a request, read the whole answer, and return its status and headers."""
    writer.write(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                 b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    await reader.readexactly(int(headers["content-length"]))
    return int(head[0].split()[1]), headers


async def closed_loop(port: int, papers: list[bytes], *, clients: int, seconds: float
                      ) -> list[float]:
    """Return the latencies of all requests that were answered within the time, in seconds."""
    found, end = [], time.perf_counter() + seconds
    coming = iter(papers * 1000)

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (started := time.perf_counter()) < end:
            status, _ = await send(next(coming), reader, writer)
            if status in (429, 503):  # on a machine that is too slow for so many clients
                await asyncio.sleep(0.1)
                continue
            if status != 200:
                raise RuntimeError(f"status {status}")
            if (now := time.perf_counter()) < end:
                found.append(now - started)
        writer.close()
    await asyncio.gather(*(client() for _ in range(clients)))
    return found


def percentile(values: list[float], share: float) -> float:
    """Return a percentile in milliseconds."""
    ordered = sorted(values)
    return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@contextmanager
def server(name: str, model: Path) -> Iterator[tuple[int, psutil.Process]]:
    """Start a contestant; yield its port and process, and end it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ([ROOT / "scripts/serve.py", model, "--port", port] if name == "nej" else
               [ROOT / "benchmarks/serving_rivals.py", name, model, port])
    with open(os.devnull, "w") as nowhere:
        process = psutil.Popen([sys.executable, *map(str, command)], stdout=nowhere,
                               stderr=subprocess.STDOUT)
    try:
        body = json.dumps({"title": "", "summary": "one paper"}).encode()
        for _ in range(600):
            try:
                asyncio.run(asyncio.wait_for(one(port, body), 30))
                break
            except (OSError, RuntimeError, asyncio.IncompleteReadError):
                if process.poll() is not None:
                    sys.exit(f"{name} ended before it answered")
                time.sleep(0.2)
        yield port, process
    finally:
        if process.poll() is None:
            family = [process, *process.children(recursive=True)]
            process.terminate()
            for left in psutil.wait_procs(family, timeout=20)[1]:
                left.kill()


async def one(port: int, body: bytes) -> tuple[int, dict[str, str]]:
    """Send a request in a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        status, headers = await send(body, reader, writer)
    finally:
        writer.close()
    if status >= 500 and "retry-after" not in headers:
        raise RuntimeError(f"status {status}")
    return status, headers


def memory(process: psutil.Process) -> float:
    """Return the proportional set size of a process and its children, in MiB."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except psutil.Error:
            continue  # it ended
    return total / (1 << 20)


async def watched(process: psutil.Process, work) -> tuple[list[float], float]:
    """Return what `work` does, and the most memory that was seen meanwhile."""
    seen, working = [], asyncio.ensure_future(work)
    while not working.done():
        seen.append(await asyncio.to_thread(memory, process))
        await asyncio.wait([working], timeout=1)
    return working.result(), max(seen)


def compare(options: argparse.Namespace, papers: list[bytes]) -> None:
    """Let the contestants take turns, and print the medians of the rounds."""
    found: dict[tuple[str, int], list[tuple[float, ...]]] = {}
    most: Counter = Counter()
    turns = [name for _ in range(options.rounds) for name in options.only]
    for turn, name in enumerate(tqdm(turns, disable=None)):
        with server(name, options.model) as (port, process):
            for clients in options.clients:
                asyncio.run(closed_loop(port, papers, clients=clients, seconds=WARM_UP_SECONDS))
                latencies, used = asyncio.run(watched(process, closed_loop(
                    port, papers[turn:], clients=clients, seconds=options.seconds)))
                if not latencies:
                    sys.exit(f"{name} answered nothing in {options.seconds} s; give more --seconds")
                most[name] = max(most[name], used)
                found.setdefault((name, clients), []).append((
                    len(latencies) / options.seconds,
                    *(percentile(latencies, share) for share in (0.5, 0.95, 0.99))))
    print("| clients | | papers/s | p50 ms | p95 ms | p99 ms | x nej's papers/s | MiB |\n"
          "|--:|---|--:|--:|--:|--:|--:|--:|")
    for clients in options.clients:
        for name in options.only:
            rate, *times = map(statistics.median, zip(*found[name, clients]))
            own = statistics.median(row[0] for row in found[options.only[0], clients])
            print(f"| {clients} | {name} | {rate:.1f} | "
                  + " | ".join(f"{value:.0f}" for value in times)
                  + f" | {rate / own:.2f} | {most[name]:.0f} |")


async def overload(port: int, process: psutil.Process, papers: list[bytes], *, rate: float,
                   minutes: float) -> tuple[Counter, list[float]]:
    """Send `rate` requests a second for some minutes; return what came of them, and memory."""
    outcomes, used, pending = Counter(), [], set()
    latencies: list[float] = []
    draw, coming = random.Random(1), iter(papers * 1000)

    async def request(body: bytes) -> None:
        started = time.perf_counter()
        try:
            status, headers = await asyncio.wait_for(one(port, body), 60)
        except Exception as error:
            outcomes[f"lost: {type(error).__name__}"] += 1
            return
        if status == 200:
            latencies.append(time.perf_counter() - started)
            outcomes["answered"] += 1
        elif status in (429, 503) and headers.get("retry-after", "").isdigit():
            outcomes[f"refused: {status}"] += 1
        else:
            outcomes[f"lost: status {status}"] += 1
    started = due = told = time.perf_counter()
    before: Counter = Counter()
    print("| minute | answered/s | refused/s | p50 of the answered ms | MiB |\n"
          "|--:|--:|--:|--:|--:|")
    while due < started + 60 * minutes:
        task = asyncio.create_task(request(next(coming)))
        pending.add(task)
        task.add_done_callback(pending.discard)
        due += draw.expovariate(rate)
        await asyncio.sleep(max(0, due - time.perf_counter()))
        if due - told >= min(60, 60 * minutes / 3):
            used.append(await asyncio.to_thread(memory, process))
            refused = sum(outcomes[key] - before[key] for key in outcomes if "refused" in key)
            print(f"| {(due - started) / 60:.1f} | "
                  f"{(outcomes['answered'] - before['answered']) / (due - told):.1f} | "
                  f"{refused / (due - told):.1f} | "
                  f"{percentile(latencies or [0], .5):.0f} | {used[-1]:.0f} |", flush=True)
            before, told = Counter(outcomes), due
            latencies.clear()
    await asyncio.gather(*pending)
    return outcomes, used


def survive(options: argparse.Namespace, papers: list[bytes]) -> int:
    """Overload nej, say what came of it, and return the exit code."""
    with server("nej", options.model) as (port, process):
        def alone() -> float:
            return percentile(asyncio.run(closed_loop(
                port, papers, clients=1, seconds=options.seconds)), 0.5)
        asyncio.run(closed_loop(port, papers, clients=64, seconds=WARM_UP_SECONDS))
        capacity = len(asyncio.run(closed_loop(
            port, papers, clients=64, seconds=options.seconds))) / options.seconds
        before, start = alone(), memory(process)
        print(f"it takes {capacity:.1f} papers/s; sending {2 * capacity:.1f}/s for "
              f"{options.overload:g} min. Before: p50 of one client {before:.0f} ms, "
              f"{start:.0f} MiB\n")
        outcomes, used = asyncio.run(overload(
            port, process, papers, rate=2 * capacity, minutes=options.overload))
        after = alone()
        lost = sum(count for key, count in outcomes.items() if key.startswith("lost"))
        print(f"\n{sum(outcomes.values()):,} requests: "
              + ", ".join(f"{count:,} {key}" for key, count in sorted(outcomes.items()))
              + f". Memory {start:.0f} MiB before, {used[0]:.0f} in the first part, {used[-1]:.0f} "
              f"in the last. At once afterwards: p50 of one client {after:.0f} ms.")
        crashed = process.poll() is not None
    growing = used[-1] > 1.1 * used[0]
    return 1 if lost or crashed or growing or after > 1.5 * before else 0


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--papers", type=Path, help="a CSV; data/arxiv.csv, or else the sample")
    parser.add_argument("--only", nargs="+", choices=RIVALS, default=RIVALS)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement (20)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--overload", type=float, metavar="MINUTES")
    options = parser.parse_args()
    path = options.papers or next(path for path in (
        ROOT / "data/arxiv.csv", ROOT / "data/sample.csv") if path.exists())
    papers = bodies(path)
    characters = sorted(map(len, papers))
    print(f"{options.model.name}, {len(papers):,} papers of {path.name} (median "
          f"{characters[len(papers) // 2]:,} bytes, 95th percentile "
          f"{characters[int(.95 * len(papers))]:,}), {os.cpu_count()} cores, "
          f"{platform.machine()}\n", flush=True)
    if options.overload:
        return survive(options, papers)
    compare(options, papers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
