"""From the CSV to the tokenized splits: categories, texts, labels, and the cache."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from transformers import AutoTokenizer

import nej.dataset
from nej import InputError
from nej.dataset import cache_folder, load_dataset
from nej.fields import KAGGLE_COLUMNS
from nej.papers import read_papers
from nej.splits import SPLITS

NAMES = {"cs.AI": "Intelligence", "cs.CL": "Language", "cs.CV": "Vision", "cs.LG": "Learning",
         "cs.RO": "Robots"}
COUNTS = {"cs.LG": 90, "cs.CV": 70, "cs.RO": 60, "cs.AI": 60, "cs.CL": 50}
QUARTERS = {"validation_fraction": 0.25, "test_fraction": 0.25}  # a few papers will do


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


def write_counts(path: Path, counts: dict[str, int]) -> Path:
    """Write so many papers of each category, in turns."""
    codes = [code for turn in range(max(counts.values()))
             for code, count in counts.items() if turn < count]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, KAGGLE_COLUMNS, restval="x")
        writer.writeheader()
        for number, code in enumerate(codes):
            writer.writerow({
                "id": f"abs-2101.{number:05d}v1", "title": f"Title {number}",
                "category": NAMES.get(code, code), "category_code": code,
                "summary": f"We study the method, paper {number}."})
    return path


@pytest.fixture(scope="module")
def five_csv(tmp_path_factory) -> Path:
    return write_counts(tmp_path_factory.mktemp("five") / "papers.csv", COUNTS)


@pytest.fixture
def load(make_config, five_csv, tokenizer):
    """Return a function that loads the papers of five categories under the given settings."""
    def load_with(**overrides):
        config = make_config(**{"data_path": str(five_csv), **QUARTERS, **overrides})
        return load_dataset(config, tokenizer)
    return load_with


def names_of(dataset) -> list[str]:
    return dataset["train"].features["label"].names


def ids_of(dataset) -> list[str]:
    return sum((dataset[name]["id"][:] for name in SPLITS), [])


def true_codes(path) -> dict[str, str]:
    table = read_papers(path)
    return dict(zip(table["id"].to_pylist(), table["category_code"].to_pylist()))


# labels

def test_labels_are_the_sorted_names(load, five_csv):
    dataset, codes = load(), true_codes(five_csv)
    assert list(dataset) == list(SPLITS)
    assert names_of(dataset) == sorted(COUNTS)
    for part in dataset.values():
        assert part.features == dataset["train"].features
        names = part.features["label"].int2str(part["label"][:])
        assert names == [codes[paper_id] for paper_id in part["id"]]
    assert sorted(ids_of(dataset)) == sorted(codes)


@pytest.mark.parametrize("overrides, expected", [
    ({"top_k": 1, "other_categories": "gather"}, ["cs.LG", "Other"]),
    ({"top_k": 2}, ["cs.CV", "cs.LG"]),
    ({"top_k": 3}, ["cs.AI", "cs.CV", "cs.LG"]),  # cs.AI and cs.RO have as many; by name
    ({"top_k": 5, "other_categories": "gather"}, ["cs.AI", "cs.CL", "cs.CV", "cs.LG", "cs.RO"]),
    ({"min_papers": 70}, ["cs.CV", "cs.LG"]),
    ({"min_papers": 60, "top_k": 4}, ["cs.AI", "cs.CV", "cs.LG", "cs.RO"]),
    ({"min_papers": 71, "other_categories": "gather"}, ["cs.LG", "Other"]),
    ({"categories": ["cs.RO", "cs.CL"]}, ["cs.CL", "cs.RO"]),
    ({"categories": ["cs.RO", "cs.CL", "cs.RO"]}, ["cs.CL", "cs.RO"]),
    ({"categories": ["cs.RO", "cs.CL", "cs.AI"], "top_k": 2}, ["cs.AI", "cs.RO"]),
    ({"categories": ["cs.RO"], "other_categories": "gather"}, ["cs.RO", "Other"]),
    ({"label_column": "category"}, ["Intelligence", "Language", "Learning", "Robots", "Vision"]),
    ({"label_column": "category", "categories": ["Vision", "Robots"]}, ["Robots", "Vision"]),
    ({"label_column": "category", "top_k": 2, "other_categories": "gather"},
     ["Learning", "Vision", "Other"]),  # 'Other' is last though it is not by name
])
def test_categories_are_chosen(load, overrides, expected):
    assert names_of(load(**overrides)) == expected


def test_other_papers_are_gathered_or_dropped(load, five_csv):
    codes = true_codes(five_csv)
    dropped, gathered = load(top_k=2), load(top_k=2, other_categories="gather")
    assert set(ids_of(dropped)) == {i for i, code in codes.items() if code in ("cs.LG", "cs.CV")}
    assert sorted(ids_of(gathered)) == sorted(codes)
    for part in gathered.values():
        for paper_id, label in zip(part["id"], part["label"]):
            expected = {"cs.CV": 0, "cs.LG": 1}.get(codes[paper_id], 2)
            assert label == expected


def test_papers_stay_in_their_split_whatever_the_categories(load):
    few, all_of_them = load(top_k=2), load()
    for name in SPLITS:
        assert set(few[name]["id"]) <= set(all_of_them[name]["id"])


@pytest.mark.parametrize("overrides, message", [
    ({"categories": ["cs.LG", "cs.VC"]}, "'cs.VC'; did you mean 'cs.CV'"),
    ({"categories": ["cs.LG", "Learning"]}, "category_code 'Learning'; did you mean"),
    ({"categories": ["Learnin", "Vision"], "label_column": "category"}, "mean 'Learning'"),
    ({"top_k": 6}, "top_k is 6, but there are 5 categories"),
    ({"top_k": 3, "min_papers": 70}, "top_k is 3, but there are 2 categories"),
    ({"top_k": 3, "categories": ["cs.AI", "cs.LG"]}, "top_k is 3, but there are 2 categories"),
    ({"top_k": 1}, "1 categories are left"), ({"categories": ["cs.AI"]}, "1 categories are left"),
    ({"min_papers": 1000}, "0 categories are left"),
    ({"min_papers": 1000, "other_categories": "gather"}, "1 categories are left"),
    ({"max_train_papers": 2}, r"category '.*' has too few papers to split \(0 train, "),
    ({"test_fraction": 0.001}, r"too few papers to split \(.* 0 test\)"),
])
def test_impossible_choices_are_explained(load, overrides, message):
    with pytest.raises(InputError, match=message):
        load(**overrides)


def test_category_with_too_few_papers_is_named(load, tmp_path):
    path = write_counts(tmp_path / "few.csv", {"cs.AI": 60, "cs.CL": 2, "cs.CV": 60})
    with pytest.raises(InputError, match=r"category 'cs.CL' has too few papers .*min_papers"):
        load(data_path=str(path))
    assert names_of(load(data_path=str(path), min_papers=3)) == ["cs.AI", "cs.CV"]


def test_missing_file_is_explained(load, tmp_path):
    with pytest.raises(InputError, match="no file .*none.csv.*make data"):
        load(data_path=str(tmp_path / "none.csv"))


# splits

def test_no_paper_is_twice_in_the_sample(make_config, tokenizer, papers_csv):
    dataset = load_dataset(make_config(top_k=3), tokenizer)
    found = ids_of(dataset)
    assert len(set(found)) == len(found) > 200
    texts = [text.lower() for name in SPLITS for text in dataset[name]["text"]]
    assert len(set(texts)) == len(texts)
    assert set(found) <= set(read_papers(papers_csv)["id"].to_pylist())


def test_fewer_training_papers_are_a_part_of_more(load):
    whole = load()
    limited = [load(max_train_papers=most) for most in (40, 80, 10_000)]
    kept = [set(dataset["train"]["id"]) for dataset in limited]
    assert [len(ids) for ids in kept[:2]] == [40, 80]
    assert kept[0] < kept[1] < kept[2] == set(whole["train"]["id"])
    for dataset in limited:
        for name in ("validation", "test"):
            assert dataset[name]["id"][:] == whole[name]["id"][:]


# texts and tokens

def test_texts_are_the_summaries(load, five_csv):
    table = read_papers(five_csv)
    summaries = dict(zip(table["id"].to_pylist(), table["summary"].to_pylist()))
    for part in load().values():
        assert part["text"][:] == [summaries[paper_id] for paper_id in part["id"]]


def test_title_can_stand_before_the_summary(load):
    for part in load(text_fields="title+summary").values():
        for text in part["text"]:
            assert re.fullmatch(r"Title (\d+)\. We study the method, paper \1\.", text)


@pytest.mark.parametrize("max_length", [8, 32, 60])
def test_tokens_are_cut_off_and_counted(make_config, tokenizer, max_length):
    dataset = load_dataset(make_config(max_length=max_length, top_k=2), tokenizer)
    for part in dataset.values():
        for row in part:
            whole = tokenizer(row["text"])["input_ids"]
            assert len(row["input_ids"]) == row["length"] == min(len(whole), max_length)
            assert row["truncated"] is (len(whole) > max_length)
            assert row["input_ids"][:-1] == whole[:row["length"] - 1]
            assert row["input_ids"][-1] == tokenizer.sep_token_id
    assert dataset["train"].features["input_ids"].feature.dtype == "int32"


# the cache

@pytest.fixture
def no_tokenizing(monkeypatch):
    """Return a function that makes any further tokenizing an error."""
    def refuse(*arguments, **options):
        raise RuntimeError("it tokenizes again")
    return lambda: monkeypatch.setattr(nej.dataset, "tokenize", refuse)


@pytest.fixture
def own_csv(tmp_path) -> Path:
    return write_counts(tmp_path / "own.csv", {"cs.AI": 40, "cs.CL": 41})


def test_what_a_killed_process_left_is_removed_and_nobody_elses(load, own_csv, monkeypatch,
                                                                tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    parent = tmp_path / "cache" / "nej"
    left, used = parent / ".scratch-left", parent / ".scratch-used"
    for folder in (left, used):
        folder.mkdir(parents=True)
        (folder / "texts.arrow").write_text("half")
        os.utime(folder, (0, 0))
    holder = subprocess.Popen(
        [sys.executable, "-c", "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); "
         "lock.acquire(); print(flush=True); input()", str(used / ".lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    holder.stdout.readline()
    os.utime(used, (0, 0))  # again: its lock came into it
    load(data_path=str(own_csv))
    assert not left.exists() and (used / "texts.arrow").exists()
    holder.communicate("\n")
    os.utime(used, (0, 0))
    own_csv.write_bytes(own_csv.read_bytes().replace(b"method", b"way"))
    load(data_path=str(own_csv))
    assert list(parent.glob(".scratch-*/")) == []


def test_second_time_comes_from_the_cache(load, own_csv, no_tokenizing):
    first = load(data_path=str(own_csv))
    no_tokenizing()
    second = load(data_path=str(own_csv))
    for name in SPLITS:
        assert second[name].to_list() == first[name].to_list()
        assert second[name].features == first[name].features


def test_cache_serves_from_any_folder_and_for_any_run(load, own_csv, no_tokenizing, monkeypatch,
                                                      tmp_path):
    first = load(data_path=str(own_csv))
    no_tokenizing()
    monkeypatch.chdir(tmp_path)
    again = load(data_path=own_csv.name, seed=3, learning_rate=0.1, output_dir="elsewhere")
    assert again["test"].to_list() == first["test"].to_list()
    (tmp_path / "copy").mkdir()
    copy = tmp_path / "copy" / "other name.csv"
    copy.write_bytes(own_csv.read_bytes())
    os.utime(copy, (0, 0))
    assert load(data_path=str(copy))["test"].to_list() == first["test"].to_list()


@pytest.mark.parametrize("overrides", [
    {"max_length": 16}, {"test_fraction": 0.26}, {"validation_fraction": 0.26},
    {"text_fields": "title+summary"}, {"label_column": "category"}, {"max_train_papers": 30},
    {"min_papers": 2}, {"top_k": 2}, {"categories": ["cs.AI", "cs.CL"]},
    {"other_categories": "gather"},
])
def test_other_settings_are_made_anew(load, own_csv, no_tokenizing, overrides):
    load(data_path=str(own_csv))
    no_tokenizing()
    with pytest.raises(RuntimeError, match="tokenizes again"):
        load(data_path=str(own_csv), **overrides)


def test_changed_papers_are_made_anew(load, own_csv, no_tokenizing):
    load(data_path=str(own_csv))
    before = own_csv.stat()
    own_csv.write_bytes(own_csv.read_bytes().replace(b"paper 17.", b"paper XX."))
    os.utime(own_csv, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert own_csv.stat().st_size == before.st_size
    texts = sum((part["text"][:] for part in load(data_path=str(own_csv)).values()), [])
    assert sum("paper XX." in text for text in texts) == 1
    own_csv.write_bytes(own_csv.read_bytes().replace(b"paper 18.", b"paper YY."))
    no_tokenizing()
    with pytest.raises(RuntimeError, match="tokenizes again"):
        load(data_path=str(own_csv))


def test_batches_go_to_the_disk_whole_and_in_order(load, own_csv, monkeypatch):
    whole = load(data_path=str(own_csv), max_length=23)
    monkeypatch.setattr(nej.dataset, "BATCH_PAPERS", 7)  # there are more than the threads take
    monkeypatch.setattr(nej.dataset, "FORMAT", -1)  # not the cache
    parts = load(data_path=str(own_csv), max_length=23)
    for name in SPLITS:
        assert parts[name].to_list() == whole[name].to_list()
        sizes = [len(batch) for batch in parts[name].data.to_batches()]
        assert set(sizes[:-1]) <= {7} and sizes[-1] <= 7, "many small ones take long to open"


def test_failure_half_way_leaves_no_cache(load, own_csv, make_config, tokenizer, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(nej.dataset, "tokenize", lambda batch, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            load(data_path=str(own_csv), max_length=17)
    folder = cache_folder(make_config(data_path=str(own_csv), max_length=17, **QUARTERS), tokenizer)
    assert not folder.exists() and not list(folder.parent.glob(f".{folder.name}*"))
    assert len(load(data_path=str(own_csv), max_length=17)["train"]) > 0


def test_used_tokenizer_finds_the_same_cache(make_config, tiny_model):
    config, tokenizer = make_config(), AutoTokenizer.from_pretrained(tiny_model)
    before = cache_folder(config, tokenizer)
    tokenizer(["one", "two words"], truncation=True, max_length=5, padding="max_length")
    assert cache_folder(config, tokenizer) == before
    assert cache_folder(config, AutoTokenizer.from_pretrained(tiny_model)) == before


def test_other_tokenizer_has_another_cache(make_config, tiny_model, tokenizer):
    other = AutoTokenizer.from_pretrained(tiny_model)
    other.add_tokens(["transformer-based"])
    assert cache_folder(make_config(), other) != cache_folder(make_config(), tokenizer)
