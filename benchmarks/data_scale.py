"""Compare how nej prepares a CSV of papers with the usual way: rows per second, peak memory.

    python benchmarks/data_scale.py
    python benchmarks/data_scale.py --papers 100000 --rounds 3 --near_duplicates
    python benchmarks/data_scale.py --csv data/arxiv.csv

From the CSV to three Arrow splits that can be tokenized. Each contestant runs in a process of its
own, and they take turns; the seconds are without imports. Peak memory is that of the process and of
those that it starts, looked at five times a second, where what they share counts once (PSS; on
other systems than Linux it counts for each).

usual   pandas.read_csv, dropna, drop_duplicates, scikit-learn's train_test_split with stratify,
        Dataset.from_pandas, cast_column to a ClassLabel: no more checks than that
nej     nej.papers.clean and nej.dataset.split_papers: what prepare.py runs, with every row checked,
        but without the search for near-duplicates, which --near_duplicates adds

The papers are generated, once, into --folder.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

import psutil

sys.path[0] = str(Path(__file__).resolve().parent.parent)


def prepare_usual(path: Path, folder: Path) -> Iterator[int]:
    """Import; then prepare as most tutorials do, and give the number of papers."""
    import pandas
    from datasets import ClassLabel, Dataset, DatasetDict
    from sklearn.model_selection import train_test_split
    yield 0
    papers = pandas.read_csv(path).dropna(subset=["summary", "category_code"])
    papers = papers.drop_duplicates("summary")[["id", "summary", "category_code"]].rename(
        columns={"summary": "text", "category_code": "label"})
    label = ClassLabel(names=sorted(papers["label"].unique()))
    train, rest = train_test_split(
        papers, test_size=0.2, random_state=0, stratify=papers["label"])
    validation, test = train_test_split(
        rest, test_size=0.5, random_state=0, stratify=rest["label"])
    dataset = DatasetDict({
        name: Dataset.from_pandas(part, preserve_index=False).cast_column("label", label)
        for name, part in (("train", train), ("validation", validation), ("test", test))})
    yield sum(len(part) for part in dataset.values())


def prepare_nej(path: Path, folder: Path, *, near_duplicate_threshold: float | None = None
                ) -> Iterator[int]:
    """Import; then prepare as nej does, and give the number of papers."""
    from nej.config import Config
    from nej.dataset import split_papers
    from nej.papers import clean
    yield 0
    papers = clean(path, folder, near_duplicate_threshold=near_duplicate_threshold)
    dataset = split_papers(papers, Config(data_path=str(path), min_papers=100))
    yield sum(len(part) for part in dataset.values())


CONTESTANTS = {
    "usual": prepare_usual, "nej": prepare_nej,
    "nej, near-duplicates too": partial(prepare_nej, near_duplicate_threshold=0.8)}


def child(name: str, path: Path) -> None:
    """Run one contestant and print what it took as JSON."""
    import datasets
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        steps = CONTESTANTS[name](path, Path(folder))
        next(steps)
        start = time.perf_counter()
        papers = next(steps)
        seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "papers": papers}))


def measure(name: str, path: Path) -> dict | None:
    """Run one contestant in a process of its own; None if it did not survive."""
    child = subprocess.Popen([sys.executable, __file__, "--child", name, "--csv", path],
                             stdout=subprocess.PIPE, text=True)
    peak = 0
    while child.poll() is None:
        time.sleep(0.2)
        peak = max(peak, memory(psutil.Process(child.pid)))
    if child.returncode != 0:
        return None
    return json.loads(child.stdout.read().splitlines()[-1]) | {"peak_mib": peak / 2**20}


def memory(process: psutil.Process) -> int:
    """Return the bytes of memory of a process and of all that it started."""
    found = 0
    try:
        for one in (process, *process.children(recursive=True)):
            info = one.memory_full_info()
            found += getattr(info, "pss", info.rss)
    except psutil.Error:  # one has just ended
        pass
    return found


def main() -> None:
    """Generate, take turns, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--papers", type=int, nargs="+", default=[100_000, 1_000_000, 3_000_000])
    parser.add_argument("--csv", type=Path, help="measure on this file instead")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--near_duplicates", action="store_true",
                        help="measure nej with the search for near-duplicates too")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "nej-scale")
    parser.add_argument("--child", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child, options.csv)
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
          + ", ".join(f"{name} {version(name)}"
                      for name in ("pyarrow", "datasets", "pandas", "scikit-learn"))
          + f"; median of {options.rounds} round(s)\n")
    print("| papers | MB | | seconds | papers/s | x usual | peak memory, MiB |", "|---" * 7 + "|",
          sep="\n")
    names = list(CONTESTANTS)[:3 if options.near_duplicates else 2]
    for path in [options.csv] if options.csv else map(partial(generate, options.folder),
                                                      options.papers):
        found = {name: [] for name in names}
        for _ in range(options.rounds):
            for name in names:
                found[name].append(measure(name, path))
        seconds = {name: statistics.median(run["seconds"] for run in runs)
                   for name, runs in found.items() if all(runs)}
        for name, runs in found.items():
            row = ["?", f"{path.stat().st_size / 1e6:,.0f}", name, "did not survive", "", "", ""]
            if name in seconds:
                papers = runs[0]["papers"]
                row = [f"{papers:,}", row[1], name, f"{seconds[name]:.1f}",
                       f"{papers / seconds[name]:,.0f}",
                       f"{seconds['usual'] / seconds[name]:.2f}" if "usual" in seconds else "?",
                       f"{max(run['peak_mib'] for run in runs):,.0f}"]
            print(f"| {' | '.join(row)} |", flush=True)


def generate(folder: Path, papers: int) -> Path:
    """Return a CSV of so many synthetic papers, made now or before."""
    from scripts.make_sample import write_csv
    path = folder / f"{papers}.csv"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(path, papers, 1)
    return path


if __name__ == "__main__":
    main()
