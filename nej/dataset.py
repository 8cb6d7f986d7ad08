"""From papers to a tokenized datasets.DatasetDict, made once and cached by content."""

import difflib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import date
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock, Timeout
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from nej import InputError
from nej.config import OTHER, Config
from nej.files import checksum, explained_writes, replacing, require
from nej.papers import CleanPapers, clean
from nej.splits import SPLITS, assign, assign_by_date
from nej.text import tokenize
from nej.workers import in_threads

logger = logging.getLogger(__name__)

FORMAT = 4  # raise it when the same papers and settings would give another data set, soft labels
# or baselines, or one that lies there otherwise
KNOWN = ("id", "title", "label", "category_code", "published")  # columns before tokenization
BATCH_PAPERS = 2000  # that are tokenized at a time
SETTINGS = (
    "text_fields", "label_column", "categories", "min_papers", "top_k", "other_categories",
    "max_bad_rows", "near_duplicate_threshold", "validation_fraction", "test_fraction",
    "validation_from", "test_from", "max_train_papers", "max_length",
)


def load_dataset(config: Config, tokenizer: PreTrainedTokenizerBase, *,
                 papers: CleanPapers | None = None) -> datasets.DatasetDict:
    """Return train, validation and test, tokenized; made now or taken from the cache.

    Columns: id, title, text (string), label (ClassLabel, ids in the order of the sorted names,
    'Other' last), category_code (ClassLabel), published (date32, may be null), input_ids (int32, at
    most max_length), length (int32, tokens), truncated (bool).

    The cache is keyed by the CSV's bytes, the settings and the tokenizer, so that it serves
    whatever folder nej is started from.

    Args:
        papers: those of the config's CSV, if they are clean already.

    Raises:
        InputError: bad data, categories that do not exist, too few papers to split.
    """
    folder = cache_folder(config, tokenizer)
    if not (folder / f"{SPLITS[-1]}.arrow").exists():
        with ExitStack() as stack:
            if papers is None:
                papers = stack.enter_context(clean_papers(config))
            dataset = split_papers(papers, config)
            scratch = stack.enter_context(_scratch()) / "tokenized"
            scratch.mkdir()
            for name, split in dataset.items():
                _tokenize(split, scratch / f"{name}.arrow", tokenizer=tokenizer,
                          text_fields=config.text_fields, max_length=config.max_length)
            with replacing(folder) as aside:
                scratch.rename(aside)
    dataset = datasets.DatasetDict({
        name: datasets.Dataset.from_file(
            str(folder / f"{name}.arrow"), split=datasets.NamedSplit(name)) for name in SPLITS})
    for name in SPLITS:
        columns = dataset[name].data.table
        logger.info("%s: %d papers, %.1f tokens on average, %.1f %% truncated to %d tokens",
                    name, len(dataset[name]), pc.mean(columns["length"]).as_py(),
                    100 * pc.mean(columns["truncated"].cast(pa.int8())).as_py(), config.max_length)
    return dataset


def _tokenize(split: datasets.Dataset, target: Path, **how: Any) -> None:
    """Write a split with its tokens, as an Arrow stream that `Dataset.from_file` reads.

    As tables, in threads: Dataset.map would convert one batch while no other is tokenized.
    """
    schema = datasets.Features({
        **{name: split.features[name] for name in KNOWN},
        "text": datasets.Value("string"), "input_ids": datasets.List(datasets.Value("int32")),
        "length": datasets.Value("int32"), "truncated": datasets.Value("bool")}).arrow_schema

    def tokenized(papers: pa.Table) -> pa.Table:
        found = tokenize(papers, **how)
        return pa.table([(papers if name in KNOWN else found)[name] for name in schema.names],
                        schema=schema).combine_chunks()

    with (pa.OSFile(str(target), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer,
          tqdm(total=len(split), desc=f"Tokenize {split.split}", unit=" papers", disable=None
               ) as bar):
        for papers in in_threads(tokenized, split.with_format("arrow").iter(BATCH_PAPERS)):
            writer.write_table(papers)
            bar.update(len(papers))


def cache_folder(config: Config, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Return where the data set of these papers, settings and tokenizer is cached."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    key = {
        "format": FORMAT,
        "papers": checksum(require(Path(config.data_path))),
        "settings": {name: getattr(config, name) for name in SETTINGS},
        # its last use leaves truncation and padding in the tokenizer, which is not what it is
        "tokenizer": {part: value for part, value in backend.items()
                      if part not in ("truncation", "padding")},
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return datasets.config.HF_DATASETS_CACHE / "nej" / digest[:32]


def describe(dataset: datasets.DatasetDict) -> dict[str, dict]:
    """Return papers, classes and a SHA-256 of ids, labels and tokens, of each split."""
    found = {}
    for name, split in dataset.items():
        counts = np.bincount(split["label"][:], minlength=len(split.features["label"].names))
        digests = {column: hashlib.sha256() for column in ("id", "label", "length", "input_ids")}
        for batch in split.data.table.to_batches():
            digests["id"].update("".join(f"{i}\n" for i in batch["id"].to_pylist()).encode())
            for column, values in (("label", batch["label"]), ("length", batch["length"]),
                                   ("input_ids", batch["input_ids"].flatten())):
                digests[column].update(values.to_numpy().tobytes())
        found[name] = {
            "papers": len(split),
            "classes": dict(zip(split.features["label"].names, counts.tolist())),
            "sha256": {column: digest.hexdigest() for column, digest in digests.items()}}
    return found


@contextmanager
def clean_papers(config: Config) -> Iterator[CleanPapers]:
    """Clean the config's CSV; the result lasts as long as the block.

    Raises:
        InputError: see `papers.clean`.
    """
    with _scratch() as scratch:
        yield clean(Path(config.data_path), scratch, max_bad_rows=config.max_bad_rows,
                    near_duplicate_threshold=config.near_duplicate_threshold)


@contextmanager
def _scratch() -> Iterator[Path]:
    """Make a folder beside the caches, where there is room for them, for the block.

    Those that killed processes left behind, whose locks nobody holds, are removed.
    """
    parent = datasets.config.HF_DATASETS_CACHE / "nej"
    with explained_writes(parent), ExitStack() as stack:
        parent.mkdir(parents=True, exist_ok=True)
        for left in parent.glob(".scratch-*/"):
            with suppress(Timeout, OSError):
                if time.time() - left.stat().st_mtime > 60:  # not one that is to be locked now
                    with FileLock(left / ".lock", timeout=0):
                        shutil.rmtree(left, ignore_errors=True)
        folder = Path(stack.enter_context(
            tempfile.TemporaryDirectory(
                prefix=".scratch-", dir=parent,
                ignore_cleanup_errors=os.name == "nt")))  # where files in use cannot go
        stack.enter_context(FileLock(folder / ".lock"))
        yield folder


def split_papers(papers: CleanPapers, config: Config) -> datasets.DatasetDict:
    """Label and split the papers.

    Returns:
        train, validation and test with id, title, summary, label, category_code and published:
        rows of the papers' files, which are read where needed and not copied.

    Raises:
        InputError: categories that do not exist, too few papers to split.
    """
    names, labels, split = label_and_split(papers, config)
    codes = papers.labels["category_code"]
    columns = {"label": np.full(len(papers.kept), -1), "category_code": np.full(
        len(papers.kept), -1), "published": np.full(len(papers.kept), "NaT", "datetime64[D]")}
    for name, values in (("label", labels), ("category_code", codes.indices.to_numpy()),
                         ("published", papers.published)):
        columns[name][papers.kept] = values
    known = datasets.Dataset(
        pa.table({name: pa.array(values) for name, values in columns.items()}),
        fingerprint="labels", info=datasets.DatasetInfo(features=datasets.Features({
            "label": datasets.ClassLabel(names=names), "published": datasets.Value("date32"),
            "category_code": datasets.ClassLabel(names=codes.dictionary.to_pylist())})))
    rows = datasets.concatenate_datasets([
        datasets.concatenate_datasets([datasets.Dataset.from_file(str(f)) for f in papers.files]),
        known], axis=1)
    where = np.flatnonzero(papers.kept)
    return datasets.DatasetDict({
        name: datasets.Dataset(
            rows.data, info=rows.info, split=datasets.NamedSplit(name), fingerprint=name,
            indices_table=pa.table({"indices": where[split == index].astype(np.uint64)}))
        for index, name in enumerate(SPLITS)})


def label_and_split(papers: CleanPapers, config: Config
                    ) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return the class names; each paper's class and the index of its split in SPLITS, int64.

    A paper of no class has -1, one of no split len(SPLITS).

    Raises:
        InputError: categories that do not exist, too few papers to split.
    """
    names = choose_categories(papers, config)
    labels = _label_ids(papers.labels[config.label_column], names, config)
    split = np.where(labels < 0, len(SPLITS), _assign(papers, config))
    if config.max_train_papers is not None:
        split = _limit_training(split, papers.positions, config.max_train_papers)
    _check_split(split, labels, names)
    return names, labels, split


def _assign(papers: CleanPapers, config: Config) -> np.ndarray:
    if config.test_from is None:
        return assign(papers.positions, validation_fraction=config.validation_fraction,
                      test_fraction=config.test_fraction)
    undated = int(np.isnat(papers.published).sum())
    if undated == len(papers):
        raise InputError(f"test_from: no paper of {papers.path} has a published_date; leave out "
                         "validation_from and test_from to split by the hash of the id")
    logger.info("split by date: %d of %d papers have no date and are left out", undated,
                len(papers))
    validation_from, test_from = (np.datetime64(date.fromisoformat(day))
                                  for day in (config.validation_from, config.test_from) if day)
    return assign_by_date(papers.published, validation_from=validation_from, test_from=test_from)


def _label_ids(labels: pa.DictionaryArray, names: list[str], config: Config) -> np.ndarray:
    """Return each paper's index into `names`, int64; -1 for a paper of no class."""
    other = len(names) - 1 if config.other_categories == "gather" else -1
    ids = pc.fill_null(pc.index_in(labels.dictionary, value_set=pa.array(names)), other)
    return ids.to_numpy().astype(np.int64)[labels.indices.to_numpy()]


def choose_categories(papers: CleanPapers, config: Config) -> list[str]:
    """Return the class names, sorted, 'Other' last if it is wanted.

    Raises:
        InputError: a category that is not in the data, top_k over what exists, fewer than two.
    """
    counts = papers.counts(config.label_column)
    chosen = config.categories or list(counts)
    for name in chosen:
        if name not in counts:
            near = difflib.get_close_matches(name, counts, n=1, cutoff=0.0)[0]
            raise InputError(f"categories: no paper of {config.data_path} has the "
                             f"{config.label_column} {name!r}; did you mean {near!r}?")
    largest = sorted(set(chosen), key=lambda name: (-counts[name], name))
    if config.min_papers is not None:
        largest = [name for name in largest if counts[name] >= config.min_papers]
    if config.top_k is not None:
        if config.top_k > len(largest):
            raise InputError(f"top_k is {config.top_k}, but there are {len(largest)} categories to "
                             f"take from in {config.data_path}; lower top_k or min_papers")
        largest = largest[:config.top_k]
    names = sorted(largest)
    if config.other_categories == "gather" and len(names) < len(counts):
        if OTHER in names:
            raise InputError(f"other_categories: {config.data_path} has a category {OTHER!r} of "
                             "its own; drop the others, or rename it")
        names.append(OTHER)
    if len(names) < 2:
        raise InputError(
            f"{config.data_path}: {len(names)} categories are left, and a classifier needs 2; "
            "change categories, min_papers or top_k, or gather the others")
    return names


def _limit_training(split: np.ndarray, where: np.ndarray, most: int) -> np.ndarray:
    """Keep the `most` training papers with the lowest positions: more papers, same beginning."""
    training = np.flatnonzero(split == SPLITS.index("train"))
    over = training[np.argsort(where[training], kind="stable")][most:]
    split = split.copy()
    split[over] = len(SPLITS)  # no split
    return split


def _check_split(split: np.ndarray, labels: np.ndarray, names: list[str]) -> None:
    for index, name in enumerate(names):
        counts = [int(np.sum((split == s) & (labels == index))) for s in range(len(SPLITS))]
        if min(counts) == 0:
            found = ", ".join(f"{count} {s}" for s, count in zip(SPLITS, counts))
            raise InputError(
                f"category {name!r} has too few papers to split ({found}), and each split needs at "
                "least 1; raise min_papers, lower top_k, or leave it out of categories")
