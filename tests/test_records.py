"""Records of files of papers: what is in the file comes out, in order, and nothing is lost."""

import json
import os
import sys
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from nej import InputError
from nej.data.records import PIPE, open_records, read_records


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


def test_a_json_array_in_a_pipe_is_told(monkeypatch):
    reading, writing = os.pipe()
    os.write(writing, b'[{"summary": "a"}]')
    os.close(writing)
    with open(reading) as pipe:
        monkeypatch.setattr(sys, "stdin", pipe)
        with pytest.raises(InputError, match="standard input is a JSON array; save it"):
            read(PIPE)


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


def test_a_file_that_may_not_be_read_is_explained(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("summary\nA robot.\n")

    def refuse(*_):  # who tests may be root, who may read everything
        raise PermissionError(13, "Permission denied")
    monkeypatch.setattr("nej.data.records.open", refuse, raising=False)
    with pytest.raises(InputError, match="a.csv cannot be read: Permission denied; change its"):
        read(tmp_path / "a.csv")


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_papers_with_a_code_need_no_name_of_the_category(tmp_path, name):
    def write(*columns):
        table = pa.table({column: ["x"] for column in columns})
        (pq.write_table if name == "a.parquet" else pa_csv.write_csv)(table, tmp_path / name)
        return list(read_records([tmp_path / name]))
    (_, record), = write("id", "title", "abstract", "categories")
    assert record == dict.fromkeys(["id", "title", "abstract", "categories"], "x")
    with pytest.raises(InputError, match="lacks category_code; found: id, title, summary") as told:
        write("id", "title", "summary")
    assert "category," not in str(told.value) and "authors" not in str(told.value)


def test_a_value_that_python_has_not_costs_nothing_else(tmp_path):
    far = pa.array([1, 2 ** 62], pa.timestamp("us"))
    pq.write_table(pa.table({"summary": ["a", "b"], "when": far, "published": far}),
                   tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == [
        (1, {"summary": "a", "published": datetime(1970, 1, 1, 0, 0, 0, 1)}),
        (2, {"summary": "b", "published": None})]


@pytest.mark.parametrize("dictionary", [False, True])
def test_a_text_in_parquet_that_is_not_utf8_is_one_as_in_a_csv(tmp_path, dictionary):
    texts = pa.array([b"a", b"Schr\xf6dinger", None], pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 3, texts.buffers())
    pq.write_table(pa.table({"summary": texts.dictionary_encode() if dictionary else texts}),
                   tmp_path / "a.parquet")
    assert [record["summary"] for _, record in read(tmp_path / "a.parquet")] == [
        "a", "Schr\udcf6dinger", None]


def test_a_damaged_parquet_file_is_told_in_one_line(tmp_path):
    pq.write_table(pa.table({"summary": ["a robot", "b robot"]}), tmp_path / "a.parquet")
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[4:40] = b"\xff" * 36
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"a.parquet: not a whole Parquet file \([^\n]+\)$"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize("name, content, message", [
    ("a.csv", b"id;summary\n1;2\n", "separated by ';'"),
    ("a.csv", b"id,title\n1,2\n", "lacks summary; found: id, title; needed: summary"),
    ("a.csv", b"", "found: nothing"), ("a.parquet", b"PAR1 no more", "not a whole Parquet file"),
    ("a.txt", b"", "must end in .csv"),
    ("a.json", b'[{"summary": "a"}]', r"a.json is a JSON array; save it as JSON Lines \(one"),
    ("a.jsonl", b'\xef\xbb\xbf\n [\n{"summary": "a"}\n]', "a.jsonl is a JSON array"),
    ("a.jsonl", '{"summary": "a"}'.encode("utf-16"), "a.jsonl is not UTF-8 .* save it as UTF-8"),
    ("a.jsonl", '{"summary": "a"}'.encode("utf-16-be"), "a.jsonl is not UTF-8"),
])
def test_a_file_that_cannot_be_read_is_explained(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path / name)
    with pytest.raises(InputError, match="no file"):
        read(Path("nowhere.csv"))
