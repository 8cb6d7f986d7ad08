"""Compare labelling a file with transformers' pipeline, as most people would write it.

    python benchmarks/prediction.py models/starter-top5
    python benchmarks/prediction.py models/quickstart --csv data/sample.csv --whole 100000

The contestants take turns in one process, each on the same papers, cut as the model was trained;
each figure is the median of the rounds.

pipeline       pipeline("text-classification", batch_size=32): fp32, in the file's order, padded
pipeline bf16  the same with dtype=bfloat16
nej torch      scripts/predict.py --backend torch, from CSV to Parquet
nej openvino   the same with the export of scripts/export.py, if there is one

Loading the models is not counted. --whole lets nej alone label so many papers, the file over and
over, and tells the rate and the memory that it took in all.
"""

import argparse
import csv
import itertools
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch  # noqa: E402
import transformers  # noqa: E402
from tqdm import tqdm  # noqa: E402

from nej.predicting import bulk  # noqa: E402
from nej.predicting.backends import OPENVINO, TORCH, export_fault, load_backend  # noqa: E402
from nej.prediction import Backend  # noqa: E402

BATCH = 32


def read(path: Path) -> Iterator[dict[str, str]]:
    """Yield the papers of a CSV, over and over."""
    while True:
        with open(path, encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)


def write(papers: Iterator[dict[str, str]], number: int, path: Path, *, titles: bool
          ) -> list[str]:
    """Write so many papers to a CSV; return what the model reads of each."""
    texts = []
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["id", "title", "summary"], extrasaction="ignore")
        writer.writeheader()
        for paper in itertools.islice(papers, number):
            writer.writerow(paper)
            texts.append(f"{paper['title']}. {paper['summary']}" if titles else paper["summary"])
    return texts


def by_pipeline(backend: Backend, dtype: torch.dtype) -> Callable[[Path, list[str]], None]:
    """Return what labels texts with transformers' pipeline."""
    pipe = transformers.pipeline(
        "text-classification", model=str(backend.model_dir), dtype=dtype,
        device=0 if torch.cuda.is_available() else -1)

    def label(path: Path, texts: list[str]) -> None:
        torch.use_deterministic_algorithms(False)  # nej's, on a GPU
        list(pipe((text for text in texts), batch_size=BATCH, truncation=True,
                  max_length=backend.config.max_length))
    return label


def by_nej(backend: Backend) -> Callable[[Path, list[str]], None]:
    """Return what labels a file with nej, its model loaded before."""
    def label(path: Path, texts: list[str]) -> None:
        bulk.load_backend = lambda *_: backend
        bulk.label_file(backend.model_dir, path, path.with_suffix(".parquet"))
    return label


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--csv", type=Path, default=Path("data/arxiv.csv"))
    parser.add_argument("--papers", type=int, default=1000, help="per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--whole", type=int, default=0)
    options = parser.parse_args()
    backends = {f"nej {name}": load_backend(options.model, name) for name in (TORCH, OPENVINO)
                if name == TORCH or export_fault(options.model) is None}
    plain = backends["nej torch"]
    contestants = {"pipeline": by_pipeline(plain, torch.float32),
                   "pipeline bf16": by_pipeline(plain, torch.bfloat16),
                   **{name: by_nej(backend) for name, backend in backends.items()}}
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    papers, titles = read(options.csv), "title" in plain.config.text_fields
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "papers.csv"
        for label in contestants.values():  # what is done first takes longer
            label(path, write(papers, BATCH, path, titles=titles))
        for _ in tqdm(range(options.rounds), desc="Rounds", disable=None):
            texts = write(papers, options.papers, path, titles=titles)
            for name, label in contestants.items():
                start = time.perf_counter()
                label(path, texts)
                rates[name].append(options.papers / (time.perf_counter() - start))
        median = {name: statistics.median(found) for name, found in rates.items()}
        print(f"{options.model}, {options.csv}, {options.rounds} rounds of {options.papers} "
              f"papers, max_length {plain.config.max_length}, {torch.get_num_threads()} threads, "
              f"torch {torch.__version__}, transformers {transformers.__version__}, "
              f"{platform.machine()}\n\n| | papers/s | x pipeline | lowest, highest |\n"
              "|---|---|---|---|")
        for name, rate in median.items():
            print(f"| {name} | {rate:.1f} | {rate / median['pipeline']:.2f} | "
                  f"{min(rates[name]):.1f}, {max(rates[name]):.1f} |")
        if options.whole:
            best = max(backends, key=median.get)
            write(papers, options.whole, path, titles=titles)
            start = time.perf_counter()
            contestants[best](path, [])
            took = time.perf_counter() - start
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"\n{best}: {options.whole:,} papers in {took:,.0f} s, "
                  f"{options.whole / took:.1f} papers/s; most memory of the process, all "
                  f"contestants loaded: {memory:,.0f} MiB")


if __name__ == "__main__":
    main()
