"""From papers to a tokenized datasets.DatasetDict, made once and cached by content."""

import difflib
import hashlib
import json
import logging
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerBase

from nej import InputError
from nej.config import OTHER, Config
from nej.files import checksum, replacing
from nej.papers import read_papers, require
from nej.splits import SPLITS, assign, positions

logger = logging.getLogger(__name__)

FORMAT = 1  # raise it when the same papers and settings would give another data set
SETTINGS = (
    "text_fields", "label_column", "categories", "min_papers", "top_k", "other_categories",
    "validation_fraction", "test_fraction", "max_train_papers", "max_length",
)


def load_dataset(config: Config, tokenizer: PreTrainedTokenizerBase) -> datasets.DatasetDict:
    """Return train, validation and test, tokenized; made now or taken from the cache.

    Columns: id, text (string), label (ClassLabel, ids in the order of the sorted names, 'Other'
    last), input_ids (int32, at most max_length), length (int32, tokens), truncated (bool).

    The cache is keyed by the CSV's bytes, the settings and the tokenizer, so that it serves
    whatever folder nej is started from.

    Raises:
        InputError: bad data, categories that do not exist, too few papers to split.
    """
    folder = cache_folder(config, tokenizer)
    if not (folder / "dataset_dict.json").exists():
        with replacing(folder) as aside:
            build_dataset(config, tokenizer).save_to_disk(aside)
    dataset = datasets.load_from_disk(folder)
    for name in SPLITS:
        columns = dataset[name].data.table
        logger.info("%s: %d papers, %.1f tokens on average, %.1f %% truncated to %d tokens",
                    name, len(dataset[name]), pc.mean(columns["length"]).as_py(),
                    100 * pc.mean(columns["truncated"].cast(pa.int8())).as_py(), config.max_length)
    return dataset


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


def build_dataset(config: Config, tokenizer: PreTrainedTokenizerBase) -> datasets.DatasetDict:
    """Read, label, split and tokenize the papers; see `load_dataset`."""
    papers = read_papers(Path(config.data_path))
    names = choose_categories(papers[config.label_column], config)
    table = _labelled(papers, names, config)
    where = positions(table["id"].to_pylist())
    split = assign(where, validation_fraction=config.validation_fraction,
                   test_fraction=config.test_fraction)
    if config.max_train_papers is not None:
        split = _limit_training(split, where, config.max_train_papers)
    _check_split(split, table["label"].to_numpy(), names)
    features = datasets.Features({
        "id": datasets.Value("string"), "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=names)})
    table = table.cast(features.arrow_schema)
    dataset = datasets.DatasetDict({
        name: datasets.Dataset(table.filter(pa.array(split == index)).combine_chunks())
        for index, name in enumerate(SPLITS)})
    return dataset.map(
        tokenize, batched=True, desc="Tokenize", load_from_cache_file=False,
        fn_kwargs={"tokenizer": tokenizer, "max_length": config.max_length},
        features=datasets.Features({
            **features, "input_ids": datasets.List(datasets.Value("int32")),
            "length": datasets.Value("int32"), "truncated": datasets.Value("bool")}))


def choose_categories(labels: pa.ChunkedArray, config: Config) -> list[str]:
    """Return the class names, sorted, 'Other' last if it is wanted.

    Raises:
        InputError: a category that is not in the data, top_k over what exists, fewer than two.
    """
    counts = {item["values"].as_py(): item["counts"].as_py() for item in pc.value_counts(labels)}
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


def texts(papers: pa.Table, text_fields: str) -> pa.ChunkedArray:
    """Return what the model reads of each paper: `text_fields` as in Config."""
    if text_fields == "summary":
        return papers["summary"]
    return pc.binary_join_element_wise(papers["title"], papers["summary"], ". ")


def tokenize(
    batch: dict[str, list], *, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, list]:
    """Return input_ids, length (tokens after truncation) and truncated for a batch of texts."""
    encoded = tokenizer(batch["text"], truncation=True, max_length=max_length,
                        return_attention_mask=False, return_token_type_ids=False)
    return {
        "input_ids": encoded["input_ids"],
        "length": [len(ids) for ids in encoded["input_ids"]],
        "truncated": [bool(encoding.overflowing) for encoding in encoded.encodings],
    }


def _labelled(papers: pa.Table, names: list[str], config: Config) -> pa.Table:
    """Return id, text and label (an index into `names`), without the papers of no class."""
    label = pc.index_in(papers[config.label_column], value_set=pa.array(names))
    if config.other_categories == "gather":
        label = pc.fill_null(label, len(names) - 1)
    table = pa.table({
        "id": papers["id"], "text": texts(papers, config.text_fields),
        "label": label.cast(pa.int64())})
    return table.filter(pc.is_valid(label))


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
