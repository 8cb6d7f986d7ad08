"""The CSV of papers: read, checked, cleaned, deduplicated."""

import csv
import logging
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from nej import InputError

logger = logging.getLogger(__name__)

KAGGLE_COLUMNS = (
    "id", "title", "category", "category_code", "published_date", "updated_date", "authors",
    "first_author", "summary", "summary_word_count",
)
COLUMNS = ("id", "title", "category", "category_code", "summary")  # what nej reads
BLOCK_BYTES = 16 << 20  # a row must fit into a block


def require(path: Path) -> Path:
    """Return `path` if it is a file, else raise InputError with the way to get it."""
    if not path.is_file():
        raise InputError(f"data_path: no file {path}; `make data` gets Kaggle's file as "
                         "data/arxiv.csv, `make sample` the sample")
    if not os.access(path, os.R_OK):
        raise InputError(f"data_path: {path} may not be read; change its permissions")
    return path


def check_header(path: Path, *, named: Path | None = None) -> None:
    """Raise InputError if the CSV at `path` (spoken of as `named`) lacks a column nej reads."""
    named = named or path
    try:
        with open(path, "rb") as handle:
            header = next(csv.reader([handle.readline(1 << 16).decode("utf-8-sig")]), [])
    except UnicodeDecodeError as error:
        raise InputError(f"{named}: row 1 is not UTF-8 ({error.reason} at byte {error.start}); "
                         "save the file as UTF-8") from error
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise InputError(
            f"{named}: the header (row 1) lacks {', '.join(missing)}; found: "
            f"{', '.join(header)[:200] or 'nothing'}; needed: {', '.join(KAGGLE_COLUMNS)}")


def read_papers(path: Path) -> pa.Table:
    """Read a CSV of papers.

    White space is collapsed. Of several versions of a paper (`abs-2101.00001v2`) the newest is
    kept, of several papers with the same summary the first.

    Returns:
        A table of strings: id (without its version), title, category, category_code, summary.

    Raises:
        InputError: no file, a missing column, a row with too few or too many fields or with an
            empty id, summary or category (with the row's number; the header is row 1), not UTF-8.
    """
    check_header(require(path))
    try:
        table = pa.Table.from_batches(
            list(_batches(path)), pa.schema([(column, pa.string()) for column in COLUMNS]))
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: {_explain(path, str(error))}") from error
    rows = len(table)
    if rows == 0:
        raise InputError(f"{path}: no papers, only a header; fetch the file again")
    table = _newest_versions(table)
    versions = rows - len(table)
    table = _first_of_same_summary(table)
    logger.info("%s: %d rows, %d papers (%d older versions or repeated rows, %d repeated "
                "summaries left out)", path, rows, len(table), versions,
                rows - versions - len(table))
    return table


def _batches(path: Path):
    """Yield cleaned record batches; one block of the file is in memory at a time."""
    reader = pa_csv.open_csv(
        path,
        # one thread: only then does an error say which row it is in
        read_options=pa_csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False),
        parse_options=pa_csv.ParseOptions(newlines_in_values=True),
        convert_options=pa_csv.ConvertOptions(
            include_columns=list(COLUMNS), column_types={c: pa.string() for c in COLUMNS},
            strings_can_be_null=False),
    )
    row = 2
    for batch in reader:
        columns = {c: _collapse_spaces(batch[c]) for c in COLUMNS}
        for name in ("id", "summary", "category", "category_code"):
            empty = pc.index(columns[name], "").as_py()
            if empty >= 0:
                raise InputError(
                    f"{path}: row {row + empty} (id {columns['id'][empty].as_py()!r}) has an empty "
                    f"{name}; fill it in or delete the row")
        yield pa.record_batch(columns)
        row += len(batch)


def _collapse_spaces(texts: pa.Array) -> pa.Array:
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(texts, r"[\s\p{Z}]+", " "))


def _explain(path: Path, error: str) -> str:
    """Say what Arrow's `error` means and what to do."""
    if "UTF8" not in error:
        return (f"{' '.join(error.split())[:200]}; correct or delete the row (the header is row "
                "1, blank lines do not count)")
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as wrong:
                return (f"line {number} is not UTF-8 (byte {line[wrong.start]:#04x} at "
                        f"{wrong.start}); save the file as UTF-8")
    return error


def _newest_versions(table: pa.Table) -> pa.Table:
    """Strip the version from each id and keep the row with the highest one, in the file's order."""
    parts = pc.extract_regex(table["id"], r"^(?P<paper>.+?)(?:v(?P<version>[0-9]{1,4}))?$")
    version = pc.struct_field(parts, "version")
    keys = pa.table({
        "paper": pc.struct_field(parts, "paper"),
        "version": pc.cast(pc.if_else(pc.equal(version, ""), "0", version), pa.int64()),
        "row": pa.array(range(len(table))),
    })
    order = keys.sort_by([("paper", "ascending"), ("version", "descending"), ("row", "ascending")])
    kept = order.filter(_differs_from_previous(order["paper"]))["row"]
    kept = pc.take(kept, pc.sort_indices(kept))
    table = table.set_column(0, "id", keys["paper"])
    return table.take(kept)


def _first_of_same_summary(table: pa.Table) -> pa.Table:
    keys = pa.table({"text": pc.utf8_lower(table["summary"]), "row": pa.array(range(len(table)))})
    order = keys.sort_by([("text", "ascending"), ("row", "ascending")])
    kept = order.filter(_differs_from_previous(order["text"]))["row"]
    return table.take(pc.take(kept, pc.sort_indices(kept)))


def _differs_from_previous(values: pa.ChunkedArray) -> pa.ChunkedArray:
    values = values.combine_chunks()
    return pa.chunked_array([[True], pc.not_equal(values[1:], values[:-1])])
