"""Every kind of change between two versions is found, and nothing else."""

import hashlib
import json
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from test_papers import paper, write_papers

from nej.data.difference import compare
from nej.papers import read_papers

OLD = [paper("abs-2101.00001v1"), paper("abs-2101.00002v1"), paper("abs-2101.00003v1"),
       paper("abs-2101.00004v1"), paper("abs-2101.00005v1")]
NEW = [paper("abs-2101.00001v2", summary="Summary of abs-2101.00001v1."),  # the same words
       paper("abs-2101.00002v2", summary="Other words."),
       paper("abs-2101.00003v1", category="Vision", category_code="cs.CV"),
       paper("abs-2101.00005v1", title="Another title"),
       paper("abs-2101.00006v1"), paper("abs-2101.00007v1")]


@pytest.fixture
def files(tmp_path):
    return write_papers(tmp_path / "old.csv", OLD), write_papers(tmp_path / "new.csv", NEW)


def test_each_change_is_found(files):
    found = compare(*map(read_papers, files))
    assert found.papers == (5, 6)
    assert found.added == ["abs-2101.00006", "abs-2101.00007"]
    assert found.removed == ["abs-2101.00004"]
    assert found.reworded == ["abs-2101.00002", "abs-2101.00005"]
    assert found.relabelled == {"abs-2101.00003": ("cs.LG", "cs.CV")}
    assert found.categories == {"cs.LG": (5, 5), "cs.CV": (0, 1)}


def test_nothing_changed(files):
    found = compare(*[read_papers(files[0])] * 2)
    assert found.as_json()["counts"] == {
        "before": 5, "after": 5, "added": 0, "removed": 0, "relabelled": 0, "reworded": 0}


def script(*arguments, cwd, name="data_diff.py"):
    return subprocess.run([sys.executable, ROOT / "scripts" / name, *arguments],
                          cwd=cwd, capture_output=True, text=True)


@pytest.fixture
def repository(tmp_path):
    """Return a folder with an empty git repository with DVC, and a function to run commands in."""
    folder = tmp_path / "repo"
    folder.mkdir()

    def do(*command):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    for command in (("git", "init", "-q"), ("git", "config", "user.email", "a@b"),
                    ("git", "config", "user.name", "a"), (sys.executable, "-m", "dvc", "init")):
        do(*command)
    return folder, do


@pytest.mark.system
def test_the_script_compares_files_and_git_revisions(files, repository, tmp_path):
    _, do = repository
    for version, file in zip(("v1", "v2"), files):
        (tmp_path / "repo" / "papers.csv").write_bytes(file.read_bytes())
        do(sys.executable, "-m", "dvc", "add", "papers.csv")
        do("git", "add", ".")
        do("git", "commit", "-qm", version)
        do("git", "tag", version)
    by_files = script(*files, "--json", tmp_path / "by_files.json", cwd=tmp_path)
    by_tags = script("v1", "v2", "--path", "papers.csv", "--json", tmp_path / "by_tags.json",
                     cwd=tmp_path / "repo")
    assert by_files.returncode == 0, by_files.stderr
    assert by_tags.returncode == 0, by_tags.stderr
    assert by_files.stdout == by_tags.stdout
    assert "added                 2  abs-2101.00006, abs-2101.00007" in by_files.stdout
    assert "relabelled            1  abs-2101.00003 cs.LG -> cs.CV" in by_files.stdout
    assert "cs.CV         0 ->         1  +1" in by_files.stdout
    contents = [json.loads((tmp_path / name).read_text())
                for name in ("by_files.json", "by_tags.json")]
    assert contents[0] == contents[1] and contents[0]["counts"]["reworded"] == 2
    wrong = script("v1", "v9", "--path", "papers.csv", cwd=tmp_path / "repo")
    assert wrong.returncode == 2 and "'v9' is no file" in wrong.stderr


@pytest.mark.system
def test_a_version_from_kaggle_can_be_compared_after_papers_are_added(repository, files):
    """It came without DVC, so that no cache had it."""
    folder, do = repository
    content = files[0].read_bytes()
    (folder / "papers.csv").write_bytes(content)
    pin = folder / "papers.csv.dvc"
    pin.write_text(f"outs:\n- md5: {hashlib.md5(content).hexdigest()}\n  size: {len(content)}\n"
                   "  hash: md5\n  path: papers.csv\nmeta:\n  kaggle: 2\n")
    do("git", "add", "papers.csv.dvc")
    do("git", "commit", "-qm", "Kaggle's")
    before = pin.read_bytes()
    for source, pinned_anew in ((files[0], False), (files[1], True)):
        done = script(source, "--to", "papers.csv", cwd=folder, name="add_papers.py")
        assert done.returncode == 0, done.stderr
        assert (pin.read_bytes() != before) == pinned_anew
    assert "kaggle" not in pin.read_text()
    done = script("HEAD", "papers.csv", "--path", "papers.csv", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "added                 2  abs-2101.00006, abs-2101.00007" in done.stdout


@pytest.mark.system
@pytest.mark.parametrize("place", ["a cache elsewhere", "a private remote"])
def test_an_old_version_is_found_where_the_repositorys_dvc_keeps_it(
        repository, files, tmp_path, place):
    folder, do = repository

    def dvc(*arguments):
        do(sys.executable, "-m", "dvc", *arguments)
    if place == "a cache elsewhere":
        dvc("cache", "dir", "../cache")
    else:
        dvc("remote", "add", "--local", "--default", "team", str(tmp_path / "remote"))
    (folder / "papers.csv").write_bytes(files[0].read_bytes())
    dvc("add", "papers.csv")
    if place == "a private remote":
        dvc("push")
        shutil.rmtree(folder / ".dvc" / "cache")
    do("git", "add", ".")
    do("git", "commit", "-qm", "Old")
    done = script("HEAD", files[1], "--path", "papers.csv", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == script(*files, cwd=folder).stdout


def test_an_absolute_path_is_that_of_the_revision_not_the_file_in_place(
        repository, files, tmp_path):
    folder, do = repository
    shutil.copy(files[0], folder / "papers.csv")
    do(sys.executable, "-m", "dvc", "add", "papers.csv")
    do("git", "add", ".")
    do("git", "commit", "-qm", "Old")
    shutil.copy(files[1], folder / "papers.csv")
    done = script("HEAD", files[1], "--path", folder / "papers.csv", cwd=folder)
    assert done.returncode == 0 and done.stdout == script(*files, cwd=folder).stdout, done.stderr
    done = script("HEAD", files[1], "--path", tmp_path / "papers.csv", cwd=folder)
    assert done.returncode == 2 and "papers.csv is outside of the repository" in done.stderr


def test_a_version_that_no_cache_has_is_told_from_one_that_nothing_pins(repository, files):
    folder, do = repository
    (folder / "papers.csv.dvc").write_text(
        f"outs:\n- md5: {'0' * 32}\n  size: 9\n  hash: md5\n  path: papers.csv\n")
    do("git", "add", ".")
    do("git", "commit", "-qm", "Pinned")
    done = script("HEAD", files[1], "--path", "papers.csv", cwd=folder)
    assert done.returncode == 2 and "neither DVC's cache nor a remote has" in done.stderr
    done = script("HEAD", files[1], "--path", "others.csv", cwd=folder)
    assert done.returncode == 2 and "it has no others.csv.dvc" in done.stderr


def test_a_revision_from_before_dvc_gives_no_data(repository, files):
    folder, do = repository
    (folder / "read.me").write_text("No papers yet.")
    do("git", "add", "read.me")
    do("git", "commit", "-qm", "First", "read.me")
    done = script("HEAD", files[1], "--path", "papers.csv", cwd=folder)
    assert done.returncode == 2 and "that revision gives no papers.csv" in done.stderr
