"""Files that are whole or absent."""

import hashlib
import json

import pytest

from nej import InputError
from nej.files import checksum, explained_writes, replacing, write_json


def _write(path, kind: str, text: str) -> None:
    """Write a file, or a folder whose files are named after the text."""
    if kind == "file":
        path.write_text(text)
    else:
        (path / "deep").mkdir(parents=True)
        (path / "deep" / f"{text}.txt").write_text(text)


def _read(path, kind: str) -> dict[str, str]:
    found = [path] if kind == "file" else [p for p in path.rglob("*") if p.is_file()]
    return {str(p.relative_to(path)): p.read_text() for p in found}


def _names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["file", "folder"])
def kind(request) -> str:
    return request.param


def test_new_content_takes_the_place_of_the_old(tmp_path, kind):
    target, expected = tmp_path / "new" / "target", tmp_path / "expected"
    for text in ("first", "second"):
        with replacing(target) as aside:
            assert not aside.exists()
            _write(aside, kind, text)
    _write(expected, kind, "second")
    assert _read(target, kind) == _read(expected, kind)
    assert _names(target.parent) == ["target"]


@pytest.mark.parametrize("there_before", [False, True])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, InputError])
def test_failure_leaves_what_was_there(tmp_path, kind, error, there_before):
    target = tmp_path / "target"
    if there_before:
        _write(target, kind, "old")
    with pytest.raises(error, match="half way"):
        with replacing(target) as aside:
            _write(aside, kind, "new")
            raise error("half way")
    assert _names(tmp_path) == (["target"] if there_before else [])
    if there_before:
        _write(tmp_path / "expected", kind, "old")
        assert _read(target, kind) == _read(tmp_path / "expected", kind)


def test_full_disk_is_explained_and_leaves_what_was_there(tmp_path, kind):
    target = tmp_path / "target"
    _write(target, kind, "old")
    before = _read(target, kind)
    with pytest.raises(InputError, match="cannot write .*target: No space left"):
        with replacing(target) as aside:
            _write(aside, kind, "new")
            raise OSError(28, "No space left on device")
    assert _read(target, kind) == before and _names(tmp_path) == ["target"]


def test_block_that_writes_nothing_leaves_what_was_there(tmp_path, kind):
    target = tmp_path / "target"
    _write(target, kind, "old")
    before = _read(target, kind)
    with pytest.raises(InputError, match="cannot write .*target"):
        with replacing(target):
            pass
    assert _read(target, kind) == before and _names(tmp_path) == ["target"]


@pytest.mark.parametrize("name", ["models", "figure.png"])
def test_a_file_does_not_take_the_place_of_a_folder(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "precious.txt").write_text("kept")
    with pytest.raises(InputError, match="cannot write .*: it is a folder; name a file"):
        write_json(tmp_path / name, {})
    assert (tmp_path / name / "precious.txt").read_text() == "kept"
    assert _names(tmp_path) == [name]


def test_a_name_that_is_too_long_is_explained(tmp_path):
    with pytest.raises(InputError, match="File name too long"):
        write_json(tmp_path / ("x" * 300), {})
    with pytest.raises(InputError, match="File name too long"), explained_writes(tmp_path):
        (tmp_path / ("x" * 300)).mkdir()


def test_a_disk_that_fills_inside_of_torch_is_explained(tmp_path):
    with pytest.raises(InputError, match="cannot write .*free some space"):
        with explained_writes(tmp_path):
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 8 vs 0")


def test_old_content_is_there_until_the_end(tmp_path, kind):
    target = tmp_path / "target"
    _write(target, kind, "old")
    before = _read(target, kind)
    with replacing(target) as aside:
        _write(aside, kind, "new")
        assert _read(target, kind) == before
    assert _read(target, kind) != before


@pytest.mark.parametrize("below", ["target", "deeper/target"])
def test_parent_that_is_a_file(tmp_path, below):
    (tmp_path / "parent").write_text("a file")
    with pytest.raises(InputError, match="cannot write .*parent.*target"):
        with replacing(tmp_path / "parent" / below) as aside:
            aside.write_text("new")
    assert _names(tmp_path) == ["parent"] and (tmp_path / "parent").read_text() == "a file"


@pytest.mark.parametrize("content", [
    {}, [], {"b": 1, "a": [0.1, None, True, "Grüße \u2028 🙂 \"x\"\n"]}, {"deep": {"er": [{}]}},
    1e-300, "text",
])
def test_json_comes_back_as_written(tmp_path, content):
    write_json(tmp_path / "a.json", "old")
    write_json(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == content
    assert _names(tmp_path) == ["a.json"]


def test_json_is_for_people_too(tmp_path):
    write_json(tmp_path / "a.json", {"b": "Grüße", "a": 1})
    assert (tmp_path / "a.json").read_bytes() == '{\n  "b": "Grüße",\n  "a": 1\n}\n'.encode()


def test_content_that_is_no_json_leaves_the_old(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    assert _names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("size", [0, 1, 300_000])
@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_checksum_is_that_of_hashlib(tmp_path, size, algorithm):
    content = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "a").write_bytes(content[:size])
    expected = hashlib.new(algorithm, content[:size]).hexdigest()
    assert checksum(tmp_path / "a", algorithm) == expected


def test_checksum_is_sha256_unless_asked(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert checksum(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
