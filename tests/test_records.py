"""Records of files of papers: what is in the file comes out, in order, and nothing is lost."""

import json
import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nej import InputError
from nej.data.records import PIPE, open_records


def read(path, needed=("summary",)):
    with open_records(path, needed=needed) as records:
        return list(records.rows)


def test_a_csv_with_line_breaks_and_quotes_in_fields_a_bom_and_crlf(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfid,abstract\r\n1,"two\r\nlines, and ""quotes"""\r\n\r\n'
                     b'2,plain\r\n')
    assert read(path) == [(3, {"id": "1", "abstract": 'two\r\nlines, and "quotes"'}),
                          (5, {"id": "2", "abstract": "plain"})]


def test_a_missing_quote_costs_the_rows_that_it_touches_and_no_others(tmp_path):
    path = tmp_path / "a.csv"
    rows = [f'{n},"summary {n}"\n' for n in range(1, 9)]
    rows[2] = '3,"summary 3\n'
    path.write_text("id,summary\n" + "".join(rows))
    found = [record["id"] if record else None for _, record in read(path)]
    assert found == ["1", "2", None, "5", "6", "7", "8"]
    path.write_text("id,summary\n" + "".join(rows[:2]) + '3,"cut o')
    assert [record and record["id"] for _, record in read(path)] == ["1", "2", None]


def test_bytes_that_are_not_utf8_can_be_told_from_a_replacement_character(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("id,summary\n1,Schr\xf6dinger\n".encode("latin-1") + "2,a \ufffd\n".encode())
    (_, first), (_, second) = read(path)
    assert first["summary"] == "Schr\udcf6dinger" and second["summary"] == "a \ufffd"


@pytest.mark.parametrize("content, found", [
    (b'id,summary\n1,"a\nb"\n', [(3, {"id": "1", "summary": "a\nb"})]),
    (b'\n{"summary": "a"}\n[1]\n', [(2, {"summary": "a"}), (3, None)]),
    (b'\xef\xbb\xbf{"summary": "a"}', [(1, {"summary": "a"})]),
])
def test_a_pipe_carries_csv_or_json_lines(content, found, monkeypatch):
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    with open(reading) as pipe:
        monkeypatch.setattr(sys, "stdin", pipe)
        assert read(PIPE) == found
        assert not pipe.closed


def test_how_much_was_read_is_known(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"summary": "x" * 1000}) + "\n" for _ in range(100)))
    table = pa.table({"summary": ["x"] * 3000})
    pq.write_table(table, tmp_path / "a.parquet")
    for file in (path, tmp_path / "a.parquet"):
        with open_records(file, needed=["summary"]) as records:
            next(records.rows)
            assert 0 < records.share_read() < 0.5
            assert len(list(records.rows)) in (99, 2999) and records.share_read() == 1


@pytest.mark.parametrize("name, content, message", [
    ("a.csv", b"id;summary\n1;2\n", "separated by ';'"),
    ("a.csv", b"id,title\n1,2\n", "lacks summary; found: id, title; needed: summary"),
    ("a.csv", b"", "found: nothing"), ("a.parquet", b"PAR1 no more", "not a whole Parquet file"),
    ("a.txt", b"", "must end in .csv"),
])
def test_a_file_that_cannot_be_read_is_explained(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path / name)
    with pytest.raises(InputError, match="no file"):
        read(Path("nowhere.csv"))
