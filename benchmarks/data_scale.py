"""Compare how nej prepares a CSV of papers with the usual way: rows per second, peak memory.

    python benchmarks/data_scale.py
    python benchmarks/data_scale.py --papers 100000 --rounds 3
    python benchmarks/data_scale.py --csv data/arxiv.csv

From the CSV to three Arrow splits that can be tokenized. Each contestant runs in a process of its
own, whose peak memory is taken, and they take turns; imports are not counted.

usual   pandas.read_csv, drop_duplicates, scikit-learn's train_test_split, Dataset.from_pandas
nej     nej.papers.clean and nej.dataset.split_papers: what prepare.py runs, near-duplicates apart,
        and every row checked

The papers are generated, once, into --folder.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

CONTESTANTS = ("usual", "nej")


def prepare_usual(path: Path, folder: Path) -> dict[str, int]:
    """Prepare as most tutorials do."""
    import pandas
    from datasets import ClassLabel, Dataset, DatasetDict
    from sklearn.model_selection import train_test_split
    yield
    papers = pandas.read_csv(path, usecols=["id", "summary", "category_code"])
    papers = papers.drop_duplicates("summary").rename(
        columns={"summary": "text", "category_code": "label"})
    train, rest = train_test_split(papers, test_size=0.2, random_state=0)
    validation, test = train_test_split(rest, test_size=0.5, random_state=0)
    label = ClassLabel(names=sorted(papers["label"].unique()))
    dataset = DatasetDict({
        name: Dataset.from_pandas(part, preserve_index=False).cast_column("label", label)
        for name, part in (("train", train), ("validation", validation), ("test", test))})
    yield {name: len(part) for name, part in dataset.items()}


def prepare_nej(path: Path, folder: Path) -> dict[str, int]:
    """Prepare as nej does."""
    from nej.config import Config
    from nej.dataset import split_papers
    from nej.papers import clean
    config = Config(data_path=str(path), near_duplicate_threshold=None)
    yield
    papers = clean(path, folder, near_duplicate_threshold=None)
    dataset = split_papers(papers, config, folder)
    yield {name: len(part) for name, part in dataset.items()}


def child(name: str, path: Path) -> None:
    """Run one contestant and print what it took as JSON."""
    import datasets
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        steps = {"usual": prepare_usual, "nej": prepare_nej}[name](path, Path(folder))
        next(steps)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        papers = next(steps)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "peak_mib": peak / 1024, "imports_mib": before / 1024,
                      "papers": papers}))


def measure(name: str, path: Path) -> dict | None:
    """Run one contestant in a process of its own; None if it did not survive."""
    done = subprocess.run([sys.executable, __file__, "--child", name, "--csv", path],
                          stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def main() -> None:
    """Generate, take turns, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--papers", type=int, nargs="+", default=[100_000, 1_000_000, 3_000_000])
    parser.add_argument("--csv", type=Path, help="measure on this file instead")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "nej-scale")
    parser.add_argument("--child", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child, options.csv)
    files = [options.csv] if options.csv else []
    if not files:
        from scripts.make_sample import write_csv
        options.folder.mkdir(parents=True, exist_ok=True)
        for number in options.papers:
            files.append(options.folder / f"{number}.csv")
            if not files[-1].exists():
                write_csv(files[-1], number, 1)
    from importlib.metadata import version
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
          + ", ".join(f"{name} {version(name)}"
                      for name in ("pyarrow", "datasets", "pandas", "scikit-learn"))
          + f"; {options.rounds} round(s)\n")
    print("| file | rows | | seconds | rows/s | x usual | peak memory, MiB |\n" + "|---" * 7 + "|")
    for path in files:
        size = path.stat().st_size
        found = {name: [] for name in CONTESTANTS}
        for _ in range(options.rounds):
            for name in CONTESTANTS:
                found[name].append(measure(name, path))
        rows = None
        if all(found["nej"]):
            rows = sum(found["nej"][0]["papers"].values())
        medians = {name: statistics.median(r["seconds"] for r in runs) for name, runs in
                   found.items() if all(runs)}
        for name, runs in found.items():
            if name not in medians:
                print(f"| {size / 1e6:,.0f} MB | {rows:,} | {name} | did not survive | | | |")
                continue
            peak = max(run["peak_mib"] for run in runs)
            ratio = f"{medians['usual'] / medians[name]:.2f}" if "usual" in medians else ""
            print(f"| {size / 1e6:,.0f} MB | {rows:,} | {name} | {medians[name]:.1f} | "
                  f"{rows / medians[name]:,.0f} | {ratio} | {peak:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
