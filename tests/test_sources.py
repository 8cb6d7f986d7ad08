"""The CSV comes from where it is, is the version that git pins, or leaves everything as it was."""

import base64
import hashlib
import http.server
import json
import random
import shlex
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import yaml

from nej import InputError
from nej.data.sources import Pin, fetch_csv, pin_version, require_repository
from nej.files import checksum
from tests.forked import run_script


def pack(path, members: dict[str, bytes]):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


# zips, folders, CSVs

def _as_csv(folder, content):
    (folder / "kaggle.csv").write_bytes(content)
    return folder / "kaggle.csv"


def _as_folder(folder, content):
    (folder / "download").mkdir()
    (folder / "download" / "README.md").write_text("not it")
    _as_csv(folder / "download", content)
    return folder / "download"


def _as_zip(folder, content):
    return pack(folder / "archive.zip", {"papers/arXiv.CSV": content, "license.txt": b"not it"})


def _as_zip_of_other_name(folder, content):
    return pack(folder / "archive", {"a.csv": content})


@pytest.mark.parametrize("make", [_as_csv, _as_folder, _as_zip, _as_zip_of_other_name])
def test_zip_csv_and_folder_give_identical_bytes(papers_csv, tmp_path, make):
    content = papers_csv.read_bytes()
    target = tmp_path / "new" / "data" / "arxiv.csv"
    source = make(tmp_path, content)
    for _ in range(2):  # also over the one in place
        fetch_csv(target, source)
        assert target.read_bytes() == content
        assert [path.name for path in target.parent.iterdir()] == ["arxiv.csv"]


def test_csv_in_place_can_be_its_own_source(papers_csv, tmp_path):
    target = _as_csv(tmp_path, papers_csv.read_bytes())
    fetch_csv(target, target)
    assert target.read_bytes() == papers_csv.read_bytes()


def _missing(folder, content):
    return folder / "not there.zip"


def _two_in_a_zip(folder, content):
    return pack(folder / "two.zip", {"a.csv": content, "b.csv": content})


def _none_in_a_zip(folder, content):
    return pack(folder / "none.zip", {"a.txt": content})


def _two_in_a_folder(folder, content):
    (_as_folder(folder, content) / "second.csv").write_bytes(content)
    return folder / "download"


def _cut_off_zip(folder, content):
    path = _as_zip(folder, content)
    path.write_bytes(path.read_bytes()[:-200])
    return path


def _zip_with_other_bytes(folder, content):
    """Damage the stored text, so that only its checksum tells."""
    path = folder / "stored.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.csv", content)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    return path


def _zip_with_a_wrong_stream(folder, content):
    """Damage the compressed stream's first byte, so that it cannot be unpacked."""
    path = pack(folder / "stream.zip", {"a.csv": content})
    damaged = bytearray(path.read_bytes())
    damaged[30 + len("a.csv")] = 0b111  # a type of block that does not exist
    path.write_bytes(damaged)
    return path


def _without_summary(folder, content):
    return _as_csv(folder, content.replace(b",summary,", b",abstract,", 1))


def _empty(folder, content):
    return _as_csv(folder, b"")


def _not_utf8(folder, content):
    return _as_csv(folder, content.decode().encode("utf-16"))


@pytest.mark.parametrize("there_before", [False, True], ids=["first time", "old one there"])
@pytest.mark.parametrize("make, message", [
    (_missing, "nothing at .*not there.zip"), (_two_in_a_zip, "2 CSV files.*a.csv.*b.csv"),
    (_none_in_a_zip, "0 CSV files"), (_two_in_a_folder, "2 CSV files"),
    (_cut_off_zip, "download it again"), (_zip_with_other_bytes, "download it again"),
    (_zip_with_a_wrong_stream, "download it again"),
    (_without_summary, "lacks summary; found: id, title"),
    (_empty, "lacks .*found: nothing"), (_not_utf8, "not UTF-8"),
])
def test_bad_source_leaves_everything_as_it_was(papers_csv, tmp_path, make, message, there_before):
    target = tmp_path / "data" / "arxiv.csv"
    target.parent.mkdir()
    if there_before:
        target.write_text("old")
    source = make(tmp_path, papers_csv.read_bytes())
    with pytest.raises(InputError, match=message) as error:
        fetch_csv(target, source)
    assert str(source) in str(error.value)
    there = {path.name: path.read_text() for path in target.parent.iterdir()}
    assert there == ({"arxiv.csv": "old"} if there_before else {})


def test_a_zip_that_would_unpack_to_far_more_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("nej.data.sources.BOMB_BYTES", 1 << 20)
    source = pack(tmp_path / "bomb.zip", {"a.csv": b"0" * (4 << 20)})
    with pytest.raises(InputError, match="would unpack to 4,194,304 bytes, over 100 times"):
        fetch_csv(tmp_path / "arxiv.csv", source)
    assert [path.name for path in tmp_path.iterdir()] == ["bomb.zip"]


@pytest.mark.parametrize("name", ["../../elsewhere.csv", "/elsewhere.csv", "a/../../b.csv"])
def test_the_name_inside_a_zip_is_not_used_as_a_path(papers_csv, tmp_path, name):
    source = pack(tmp_path / "tricky.zip", {name: papers_csv.read_bytes()})
    target = tmp_path / "deep" / "down" / "arxiv.csv"
    fetch_csv(target, source)
    assert target.read_bytes() == papers_csv.read_bytes()
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "arxiv.csv", "tricky.zip"]


# versions

@pytest.fixture
def pinned(papers_csv, tmp_path, monkeypatch):
    """Return the content that data/arxiv.csv.dvc pins, in an empty DVC repository."""
    monkeypatch.chdir(tmp_path)
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    dvc("init", "--quiet", "--no-scm")
    dvc("config", "core.analytics", "false")
    (tmp_path / "data").mkdir()
    content = papers_csv.read_bytes()
    (tmp_path / "data" / "arxiv.csv.dvc").write_text(yaml.safe_dump({
        "outs": [{"md5": hashlib.md5(content).hexdigest(), "size": len(content), "hash": "md5",
                  "path": "arxiv.csv"}], "meta": {"kaggle": 2}}, sort_keys=False))
    return content


def dvc(*arguments):
    subprocess.run([sys.executable, "-m", "dvc", *arguments], check=True, capture_output=True)


def test_a_named_source_of_another_version_is_told_apart_and_can_be_pinned(
        pinned, tmp_path, caplog):
    target, file = tmp_path / "data" / "arxiv.csv", tmp_path / "data" / "arxiv.csv.dvc"
    before = file.read_bytes()
    fetch_csv(target, pack(tmp_path / "right.zip", {"a.csv": pinned}))
    assert target.read_bytes() == pinned and caplog.text == ""
    other = pinned[:-10] + b"0" + pinned[-9:]  # the size alone would not tell
    source = pack(tmp_path / "other.zip", {"a.csv": other})
    fetch_csv(target, source)
    for part in (hashlib.md5(pinned).hexdigest(), hashlib.md5(other).hexdigest(), "ACCEPT=1"):
        assert part in caplog.text
    assert target.read_bytes() == other and file.read_bytes() == before
    fetch_csv(target, source, accept=True)
    assert Pin.of(target) == Pin(file, hashlib.md5(other).hexdigest(), len(other), None)
    assert yaml.safe_load(file.read_text())["outs"][0]["path"] == "arxiv.csv"


def test_the_command_that_pins_another_version_can_be_given_as_it_is_printed(
        pinned, tmp_path, caplog):
    folder = tmp_path / "data" / "of June"  # the file that is put in place becomes its second CSV
    folder.mkdir()
    target = folder / "arxiv.csv"
    (tmp_path / "data" / "arxiv.csv.dvc").rename(folder / "arxiv.csv.dvc")
    other = pinned[:-10] + b"0" + pinned[-9:]
    _as_csv(folder, other)
    fetch_csv(target, folder)
    name, = shlex.split(caplog.text.partition("make data ACCEPT=1 SOURCE=")[2])
    fetch_csv(target, Path(name), accept=True)
    assert Pin.of(target).matches(target) and target.read_bytes() == other


def test_the_version_that_is_replaced_is_kept_and_the_same_one_stays_kaggles(pinned, tmp_path):
    target, file = tmp_path / "data" / "arxiv.csv", tmp_path / "data" / "arxiv.csv.dvc"
    target.write_bytes(pinned)
    before = file.read_bytes()
    pin_version(target)
    assert file.read_bytes() == before
    subprocess.run(["rm", "-r", tmp_path / ".dvc" / "cache"], check=True)
    other = pack(tmp_path / "other.zip", {"a.csv": pinned[:-10] + b"0" + pinned[-9:]})
    fetch_csv(target, other, accept=True)
    assert Pin.of(target).kaggle_version is None
    file.write_bytes(before)
    target.unlink()
    fetch_csv(target)  # no server of Kaggle's here
    assert target.read_bytes() == pinned


def test_dvcs_remote_comes_before_kaggle(pinned, tmp_path):
    target = tmp_path / "data" / "arxiv.csv"
    dvc("remote", "add", "--default", "shared", str(tmp_path / "shared"))
    fetch_csv(target, pack(tmp_path / "right.zip", {"a.csv": pinned}), accept=True)
    dvc("push")
    target.unlink()
    for folder in ("cache", "tmp"):
        subprocess.run(["rm", "-r", tmp_path / ".dvc" / folder], check=True)
    fetch_csv(target)  # no server of Kaggle's here
    assert target.read_bytes() == pinned


def test_a_file_that_nobody_pinned_is_not_overwritten(pinned, tmp_path):
    target = tmp_path / "data" / "arxiv.csv"
    target.write_bytes(b"my own")
    with pytest.raises(InputError, match="not the version that .*dvc add .*move it away"):
        fetch_csv(target)
    assert target.read_bytes() == b"my own"


def test_a_file_that_cannot_be_pinned_is_not_put_in_place(pinned, tmp_path, monkeypatch):
    (tmp_path / "repository").mkdir()
    monkeypatch.chdir(tmp_path / "repository")
    dvc("init", "--quiet", "--no-scm")
    with pytest.raises(InputError, match="out.csv is outside of the DVC repository"):
        fetch_csv(tmp_path / "out.csv", pack(tmp_path / "a.zip", {"a.csv": pinned}), accept=True)
    assert not (tmp_path / "out.csv").exists()
    require_repository(tmp_path / "repository" / "data" / "out.csv")


def test_papers_are_pinned_before_the_rejects_are_written(pinned, tmp_path):
    target = tmp_path / "data" / "arxiv.csv"
    target.write_bytes(pinned)
    new = pinned.decode().splitlines()[1].split(",")[0]
    (tmp_path / "new.csv").write_bytes(pinned.replace(new.encode(), b"abs-2506.00001"))
    done = run_script("add_papers.py", "new.csv", "--rejects", "/proc/x/rejects.csv", cwd=tmp_path)
    assert done.returncode == 2 and "cannot write /proc/x/rejects.csv" in done.stderr
    assert target.read_bytes() != pinned and Pin.of(target).matches(target)


def test_papers_are_added_to_no_file_outside_of_the_repository(
        pinned, tmp_path, monkeypatch):
    (tmp_path / "repository").mkdir()
    monkeypatch.chdir(tmp_path / "repository")
    dvc("init", "--quiet", "--no-scm")
    (tmp_path / "out.csv").write_bytes(pinned)
    done = run_script("add_papers.py", "new.csv", "--to", "../out.csv")
    assert done.returncode == 2 and "../out.csv is outside of the DVC repository" in done.stderr
    assert (tmp_path / "out.csv").read_bytes() == pinned


def test_why_a_file_cannot_be_pinned_is_said(pinned, tmp_path):
    (tmp_path / "data" / "arxiv.csv.dvc").unlink()
    with pytest.raises(InputError, match="`dvc add .*arxiv.csv` failed .*does not exist"):
        pin_version(tmp_path / "data" / "arxiv.csv")


@pytest.mark.parametrize("accept", [False, True])
def test_a_file_that_nobody_pinned_is_not_replaced_by_a_source(pinned, tmp_path, accept):
    target = tmp_path / "data" / "arxiv.csv"
    edited = pinned[:-10] + b"0" + pinned[-9:]
    target.write_bytes(edited)
    with pytest.raises(InputError, match="not the version that .*dvc add .*move it away"):
        fetch_csv(target, pack(tmp_path / "right.zip", {"a.csv": pinned}), accept=accept)
    (tmp_path / "new.csv").write_bytes(pinned)
    done = run_script("add_papers.py", "new.csv", cwd=tmp_path)
    assert done.returncode == 2 and "move it away" in done.stderr
    assert target.read_bytes() == edited


def test_the_pinned_version_that_a_source_replaces_is_in_the_cache(pinned, tmp_path):
    target = tmp_path / "data" / "arxiv.csv"
    target.write_bytes(pinned)
    fetch_csv(target, pack(tmp_path / "other.zip", {"a.csv": pinned[:-10] + b"0" + pinned[-9:]}))
    target.unlink()
    fetch_csv(target)  # no server of Kaggle's here
    assert target.read_bytes() == pinned


@pytest.mark.parametrize("content", ["", "outs: []", "outs: [{path: a}]", "{", "- a", "outs: 3"])
def test_a_broken_pin_is_explained(pinned, tmp_path, content):
    (tmp_path / "data" / "arxiv.csv.dvc").write_text(content)
    with pytest.raises(InputError, match="arxiv.csv.dvc: not a .dvc file.*git checkout"):
        fetch_csv(tmp_path / "data" / "arxiv.csv")


# Kaggle, through its real client and a server that answers as Kaggle's does

class Kaggle(http.server.BaseHTTPRequestHandler):
    """The two calls of the data set service, and the storage that a download is sent on to."""

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.calls.append((self.path.rpartition("/")[2], request))
        if self.server.refuse:
            self.answer(self.server.refuse, json.dumps(
                {"code": self.server.refuse, "message": "no such data set"}).encode())
        elif self.path == "/v1/datasets.DatasetApiService/GetDataset":
            self.answer(200, json.dumps({"currentVersionNumber": 3}).encode())
        elif self.path == "/v1/datasets.DatasetApiService/DownloadDataset":
            self.answer(302, b"", Location=f"/version{request['datasetVersionNumber']}.zip")

    def do_GET(self):
        body = self.server.bundles[self.path]
        start = int(self.headers.get("Range", "bytes=0-")[len("bytes="):-1])
        self.server.calls.append(("GET", start))
        digest = base64.b64encode(hashlib.md5(body).digest()).decode()
        cut = self.server.cut_after
        self.answer(206 if start else 200, body[start:], cut=cut, **{
            "Content-Type": "application/zip", "Accept-Ranges": "bytes",
            "x-goog-hash": f"md5={digest}"})

    def answer(self, status, body, cut=None, **headers):
        self.send_response(status)
        headers = {"Content-Type": "application/json" if status != 302 else "text/html",
                   "Content-Length": str(len(body))} | headers
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True

    def log_message(self, *arguments):
        pass


@pytest.fixture
def kaggle(pinned, tmp_path, monkeypatch):
    """Return a server that has the pinned file as version 2 and a longer one as version 3."""
    from kagglesdk import kaggle_env
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Kaggle)
    name = "arXiv_scientific dataset.csv"
    newest = pinned + pinned.splitlines(keepends=True)[-1]
    server.bundles = {
        f"/version{number}.zip": pack(tmp_path / "bundle.zip", {
            "more.bin": random.Random(1).randbytes(3 << 20), name: content}).read_bytes()
        for number, content in ((2, pinned), (3, newest))}
    server.calls, server.refuse, server.cut_after, server.newest = [], None, None, newest
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD,
                        f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kagglehub"))
    yield server
    server.shutdown()
    server.server_close()


def test_kaggles_pinned_version_is_fetched_once_and_without_an_account(kaggle, pinned, tmp_path):
    target = tmp_path / "data" / "arxiv.csv"
    before = (tmp_path / "data" / "arxiv.csv.dvc").read_bytes()
    for _ in range(2):  # the second time it is there
        fetch_csv(target)
        assert target.read_bytes() == pinned
    assert [call for call, _ in kaggle.calls] == ["DownloadDataset", "GET"]
    request = kaggle.calls[0][1]
    assert (request["ownerSlug"], request["datasetSlug"], request["datasetVersionNumber"]) == (
        "sumitm004", "arxiv-scientific-research-papers-dataset", 2)
    assert (tmp_path / "data" / "arxiv.csv.dvc").read_bytes() == before


def test_kaggles_newest_version_is_pinned_when_it_is_accepted(kaggle, tmp_path):
    target = tmp_path / "data" / "arxiv.csv"
    fetch_csv(target, accept=True)
    assert target.read_bytes() == kaggle.newest
    pin = Pin.of(target)
    assert (pin.md5, pin.kaggle_version) == (hashlib.md5(kaggle.newest).hexdigest(), 3)


def test_other_bytes_under_the_pinned_version_are_refused(kaggle, tmp_path):
    kaggle.bundles["/version2.zip"] = kaggle.bundles["/version3.zip"]
    with pytest.raises(InputError, match="another version of the data: md5"):
        fetch_csv(tmp_path / "data" / "arxiv.csv")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["arxiv.csv.dvc"]


def test_a_download_that_was_cut_off_goes_on(kaggle, pinned, tmp_path):
    target = tmp_path / "data" / "arxiv.csv"
    kaggle.cut_after = 5 << 19  # 2.5 MiB; the client writes pieces of one
    with pytest.raises(InputError, match="cannot fetch .*versions/2 from Kaggle.*SOURCE"):
        fetch_csv(target)
    assert not target.exists()
    kaggle.cut_after = None
    fetch_csv(target)
    assert target.read_bytes() == pinned
    assert kaggle.calls[-1][0] == "GET" and kaggle.calls[-1][1] > 0  # from where it stopped


@pytest.mark.parametrize("status", [403, 404, 500])
def test_kaggles_refusals_are_a_sentence(kaggle, tmp_path, status):
    kaggle.refuse = status
    with pytest.raises(InputError, match="cannot fetch .*from Kaggle"):
        fetch_csv(tmp_path / "data" / "arxiv.csv")


def test_no_kaggle_no_remote_no_source(pinned, tmp_path, monkeypatch):
    from kagglesdk import kaggle_env
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD,
                        "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kagglehub"))
    with pytest.raises(InputError, match="cannot fetch .*`make data SOURCE=the-zip`"):
        fetch_csv(tmp_path / "data" / "arxiv.csv")


def test_the_repositorys_own_pin_is_kaggles_file():
    from conftest import ROOT
    pin = Pin.of(ROOT / "data" / "arxiv.csv")
    assert pin.size == 186_543_036 and pin.kaggle_version == 2
    sample = ROOT / "data" / "sample.csv"
    assert Pin.of(sample).kaggle_version is None
    if sample.exists():
        assert Pin.of(sample).md5 == checksum(sample, "md5")
