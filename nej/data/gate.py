"""What there is to know about the data before anyone trains on it: `make check-data`."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerBase

from nej.config import Config
from nej.data.data_figures import draw_bars, draw_lengths, draw_years
from nej.dataset import label_and_split
from nej.fields import ARXIV_ID, KAGGLE_COLUMNS
from nej.files import replacing, write_csv
from nej.papers import CleanPapers
from nej.rows import check_header
from nej.splits import SPLITS, assign, positions
from nej.tables import markdown_table
from nej.text import texts

TOKENIZED_PAPERS = 5000  # a sample of so many tells the lengths
LENGTHS = (64, 128, 192, 256, 320, 384, 512)  # of max_length
SHOWN = 5  # examples of a finding
ARCHIVES = frozenset(
    "acc-phys adap-org alg-geom ao-sci astro-ph atom-ph bayes-an chao-dyn chem-ph cmp-lg comp-gas "
    "cond-mat cs dg-ga econ eess funct-an gr-qc hep-ex hep-lat hep-ph hep-th math math-ph mtrl-th "
    "nlin nucl-ex nucl-th patt-sol physics plasm-ph q-alg q-bio q-fin quant-ph solv-int stat "
    "supr-con".split())  # https://arxiv.org/category_taxonomy, with those of the past


@dataclass(frozen=True)
class DataReport:
    """What `check_papers` found; `markdown` is the page that a newcomer reads first."""

    file: dict[str, Any]  # path, bytes, line ends, columns that are missing or more than Kaggle's
    rows: int
    papers: int
    rejected: dict[str, int]  # by kind
    crossing: int  # near-duplicates that another split would have had
    warnings: list[str]
    categories: dict[str, int]  # papers by code, largest first
    words: dict[str, list[int]]  # quantiles of title and summary
    tokens: np.ndarray  # int, of a sample, without truncation
    truncated: dict[int, float]  # share of papers, by max_length
    splits: dict[str, dict[str, int]]  # papers by class, by split
    years: dict[int, dict[str, int]]  # papers by class, by year of publication

    def text(self) -> str:
        """Return what matters most, for a terminal."""
        left_out = ", ".join(f"{kind}: {count:,}" for kind, count in self.rejected.items())
        counts = ", ".join(f"{sum(classes.values()):,} {name}"
                           for name, classes in self.splits.items())
        return "\n".join([
            f"{self.file['path']}: {self.rows:,} rows = {self.papers:,} papers + "
            f"{self.rows - self.papers:,} left out" + f" ({left_out})" * bool(left_out),
            f"{len(self.splits[SPLITS[0]])} classes of {len(self.categories)} categories: {counts}",
            *(f"warning: {warning}" for warning in self.warnings)])

    def markdown(self) -> str:
        """Return the report as a page, whose pictures lie in figures/."""
        warnings = "\n".join(f"- {text}" for text in self.warnings) or "None."
        rows = markdown_table(("", "rows"), (
            ("in the file", f"{self.rows:,}"),
            *((f"left out: {kind}", f"{count:,}") for kind, count in self.rejected.items()),
            ("**papers**", f"**{self.papers:,}**")))
        wide = markdown_table(("words of", "least", "5 %", "median", "95 %", "most"), (
            (name, *(f"{quantile:,}" for quantile in quantiles))
            for name, quantiles in self.words.items()))
        cut = markdown_table(("max_length", "papers that are truncated"), (
            (str(length), f"{share:.1%}") for length, share in self.truncated.items()))
        names = list(self.splits[SPLITS[0]])
        split = markdown_table(("", *SPLITS), (
            *((name, *(f"{self.splits[s][name]:,}" for s in SPLITS)) for name in names),
            ("**all**", *(f"{sum(self.splits[s].values()):,}" for s in SPLITS))))
        return f"""# The data: {self.file['path']}

{self.file['bytes']:,} bytes, UTF-8, lines end with {self.file['line_ends']}. Columns
{self.file['columns']}.

{rows}

Every row that is left out stands in [rejects.csv](rejects.csv) with its number and the reason (the
header is row 1). Of the near-duplicates the hash of the id would have put {self.crossing:,} into
another split than the paper that they repeat.

## Warnings

{warnings}

## Categories

{len(self.categories):,} categories. The model is trained on {len(names):,} of them:

{split}

![Papers in each category](figures/data_categories.png)

## Lengths

{wide}

Tokens of what the model reads, of a sample of {len(self.tokens):,} papers:

{cut}

![Tokens of a paper](figures/data_lengths.png)

## Years

![Share of each class by year of publication](figures/data_years.png)
"""


def check_papers(papers: CleanPapers, config: Config, tokenizer: PreTrainedTokenizerBase
                 ) -> DataReport:
    """Look at every paper and every row that was left out.

    Raises:
        InputError: the config's categories cannot be split (`clean` has raised what else stops).
    """
    if papers.rows != len(papers) + len(papers.rejects):
        raise AssertionError(f"{papers.rows} rows, but {len(papers)} papers and "
                             f"{len(papers.rejects)} rejects")
    names, labels, split = label_and_split(papers, config)
    facts = _read_once(papers, config)
    tokens = np.array([len(ids) for ids in tokenizer(
        facts.sample, truncation=False, verbose=False)["input_ids"]])
    truncated = {length: float(np.mean(tokens > length))
                 for length in sorted({*LENGTHS, config.max_length})}
    return DataReport(
        file=_describe_file(papers.path), rows=papers.rows, papers=len(papers),
        rejected=papers.rejected(), crossing=_crossing(papers.rejects, config),
        warnings=_warnings(papers, facts, config, truncated),
        categories=dict(Counter(papers.counts("category_code")).most_common()),
        words={name: np.quantile(words, (0, 0.05, 0.5, 0.95, 1)).astype(int).tolist()
               for name, words in facts.words.items()},
        tokens=tokens, truncated=truncated,
        splits={name: dict(zip(names, np.bincount(
            labels[split == index], minlength=len(names)).tolist()))
            for index, name in enumerate(SPLITS)},
        years=_years(papers.published, labels, names))


def write_report(report: DataReport, papers: CleanPapers, folder: Path, *, max_length: int) -> None:
    """Write data.md, its pictures and rejects.csv into `folder`."""
    write_csv(folder / "rejects.csv", papers.rejects.column_names, (
        row.values() for batch in papers.rejects.to_batches() for row in batch.to_pylist()))
    figures = folder / "figures"
    draw_bars(report.categories, figures / "data_categories.png",
              title=f"Papers in each of {len(report.categories):,} categories", unit="papers")
    draw_lengths(report.tokens, figures / "data_lengths.png", max_length=max_length)
    draw_years(report.years, figures / "data_years.png")
    with replacing(folder / "data.md") as aside:
        aside.write_text(report.markdown(), "utf-8")


@dataclass
class _Facts:
    """What one pass over the texts tells."""

    words: dict[str, np.ndarray]
    sample: list[str]
    odd_ids: list[str]
    untitled: int


def _read_once(papers: CleanPapers, config: Config) -> _Facts:
    every = -(-len(papers) // TOKENIZED_PAPERS)  # rounded up
    words: dict[str, list] = {"title": [], "summary": []}
    sample, odd_ids, untitled, start = [], [], 0, 0
    for batch in papers.batches():
        for name in words:
            words[name].append((pc.count_substring(batch[name], " ").to_numpy()
                                + (pc.binary_length(batch[name]).to_numpy() > 0)))
        untitled += pc.sum(pc.equal(batch["title"], "")).as_py() or 0
        fine = pc.match_substring_regex(batch["id"], f"^(?:{ARXIV_ID.pattern})$")
        odd_ids += batch["id"].filter(pc.invert(fine)).to_pylist()
        chosen = np.arange(-start % every, len(batch), every)
        sample += texts(batch.take(chosen), config.text_fields).to_pylist()
        start += len(batch)
    return _Facts({name: np.concatenate(parts) for name, parts in words.items()},
                  sample, odd_ids, untitled)


def _describe_file(path: Path) -> dict[str, Any]:
    header = check_header(path)
    missing = [column for column in KAGGLE_COLUMNS if column not in header]
    more = [column for column in header if column not in KAGGLE_COLUMNS]
    with open(path, "rb") as file:
        line = file.readline(1 << 16)
    columns = ("lacking: " + ", ".join(missing) if missing else "as Kaggle's") + (
        "; more: " + ", ".join(more) if more else "")
    return {"path": str(path), "bytes": path.stat().st_size, "columns": columns,
            "line_ends": "CRLF" if line.endswith(b"\r\n") else "LF"}


def _crossing(rejects: pa.Table, config: Config) -> int:
    """Count the near-duplicates whose id alone would put them into another split."""
    near = rejects.filter(pc.equal(rejects["kind"], "near-duplicate"))
    own, other = (assign(positions(near[column].to_pylist()), test_fraction=config.test_fraction,
                         validation_fraction=config.validation_fraction)
                  for column in ("id", "of"))
    return int(np.sum(own != other))


def _warnings(papers: CleanPapers, facts: _Facts, config: Config, truncated: dict[int, float]
              ) -> list[str]:
    counts = papers.counts("category_code")
    found = []
    if facts.odd_ids:
        found.append(_some(facts.odd_ids, "ids that are not arXiv's"))
    if facts.untitled:
        found.append(f"papers without a title: {facts.untitled:,}")
    short = int(np.sum(facts.words["summary"] < config.short_summary_words))
    if short:
        found.append(f"summaries of fewer than {config.short_summary_words} words: {short:,}")
    undated = int(np.isnat(papers.published).sum())
    if undated:
        found.append("papers without a published_date, or with one in another form than 3/7/21 and "
                     f"2021-03-07: {undated:,} ({undated / len(papers):.1%})")
    unknown = [code for code in counts if code.partition(".")[0] not in ARCHIVES]
    if unknown:
        found.append(_some(unknown, "categories of no archive of arXiv"))
    least = config.small_category_papers
    small = [code for code, count in counts.items() if count < least]
    if small:
        found.append(_some(small, f"categories of fewer than {least} papers"))
    codes, of_code = papers.labels["category_code"], papers.labels["category"]
    pairs = {(codes.dictionary[i].as_py(), of_code.dictionary[j].as_py()) for i, j in np.unique(
        np.stack([codes.indices.to_numpy(), of_code.indices.to_numpy()]), axis=1).T.tolist()}
    for one, other, several in ((0, 1, "codes with several names"),
                                (1, 0, "names of several codes")):
        times = Counter(pair[one] for pair in pairs)
        many = [f"{name} ({', '.join(sorted(p[other] for p in pairs if p[one] == name))})"
                for name, count in times.items() if count > 1]
        if many:
            found.append(_some(many, several))
    if truncated[config.max_length] > 0.5:
        found.append(f"max_length {config.max_length} truncates "
                     f"{truncated[config.max_length]:.0%} of the papers")
    return found


def _some(items: list[str], what: str) -> str:
    return f"{what}: {len(items):,}, {', '.join(sorted(items)[:SHOWN])}" + (
        ", ..." if len(items) > SHOWN else "")


def _years(published: np.ndarray, labels: np.ndarray, names: list[str]
           ) -> dict[int, dict[str, int]]:
    there = ~np.isnat(published) & (labels >= 0)
    years = published[there].astype("datetime64[Y]").astype(int) + 1970
    return {int(year): dict(zip(names, np.bincount(
        labels[there][years == year], minlength=len(names)).tolist())) for year in np.unique(years)}
