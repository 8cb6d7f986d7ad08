"""Versions of the data: back and forward byte for byte, and from a remote on S3."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nej.files import checksum
from nej.training import train

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.system
FIRST_MD5, FIRST_ROWS = "2251d3cbb9f62ab96c5265c0817fe1d7", 4000


@pytest.fixture
def command(tmp_path):
    """Return a function that runs a command in an empty git repository with DVC."""
    def run(*words: str) -> str:
        words = (sys.executable, "-m", *words) if words[0] == "dvc" else words
        done = subprocess.run(words, cwd=tmp_path / "repository", capture_output=True, text=True,
                              env=os.environ | {
                                  "GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@b",
                                  "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@b",
                                  "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "-"})
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
    (tmp_path / "repository").mkdir()
    run("git", "init", "-q")
    run("dvc", "init", "-q")
    return run


def test_back_to_the_first_version_and_forward_again(command, tmp_path, make_config):
    repository = tmp_path / "repository"
    shutil.copytree(ROOT / "data" / "remote", repository / "data" / "remote")
    shutil.copy(ROOT / ".dvc" / "config", repository / ".dvc" / "config")
    second = (ROOT / "data" / "sample.csv.dvc").read_text()
    second_md5 = second.split("md5: ")[1].split()[0]
    first_file = (repository / "data" / "remote" / "files" / "md5" / FIRST_MD5[:2]
                  / FIRST_MD5[2:])
    pin = repository / "data" / "sample.csv.dvc"
    for version, (md5, size) in enumerate((
            (FIRST_MD5, first_file.stat().st_size), (second_md5, None)), 1):
        pin.write_text(second if size is None else
                       f"outs:\n- md5: {md5}\n  size: {size}\n  hash: md5\n  path: sample.csv\n"
                       "  remote: embedded\n")
        command("git", "add", "-A")
        command("git", "commit", "-qm", f"Version {version}")

    def go(revision: str, folder: str) -> str:
        """Check out a version, train on it, return the hash of the weights."""
        command("git", "checkout", "-q", revision, "--", "data/sample.csv.dvc")
        command("dvc", "pull", "-q", "data/sample.csv.dvc")
        config = make_config(data_path=str(repository / "data" / "sample.csv"), max_steps=4,
                             output_dir=str(tmp_path / folder), near_duplicate_threshold=None)
        return checksum(train(config).model_dir / "model.safetensors")

    csv = repository / "data" / "sample.csv"
    weights = {}
    for turn, revision in enumerate(("HEAD", "HEAD~1", "HEAD", "HEAD~1")):
        found = go(revision, f"model{turn}")
        assert checksum(csv, "md5") == (second_md5 if revision == "HEAD" else FIRST_MD5)
        assert weights.setdefault(revision, found) == found
    assert weights["HEAD"] != weights["HEAD~1"]
    first, later = first_file.read_bytes(), (
        repository / "data" / "remote" / "files" / "md5" / second_md5[:2] / second_md5[2:])
    assert later.read_bytes().startswith(first) and len(later.read_bytes()) > len(first)


def test_a_remote_on_s3(command, tmp_path, papers_csv):
    """DVC's own S3 client pushes to and pulls from a server on this machine."""
    import boto3
    from moto.server import ThreadedMotoServer
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        boto3.client("s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="key",
                     aws_secret_access_key="-").create_bucket(Bucket="papers")
        repository = tmp_path / "repository"
        shutil.copy(papers_csv, repository / "arxiv.csv")
        command("dvc", "add", "-q", "arxiv.csv")
        command("dvc", "remote", "add", "--default", "team", "s3://papers/nej")
        command("dvc", "remote", "modify", "team", "endpointurl", url)
        assert "1 file pushed" in command("dvc", "push")
        shutil.rmtree(repository / ".dvc" / "cache")
        (repository / "arxiv.csv").unlink()
        command("dvc", "pull")
        assert (repository / "arxiv.csv").read_bytes() == papers_csv.read_bytes()
    finally:
        server.stop()
