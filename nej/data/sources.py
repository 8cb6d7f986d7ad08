"""The CSV of papers: fetched, checked against the version that git pins, put in place."""

import filecmp
import logging
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import yaml

from nej import InputError
from nej.files import checksum, replacing
from nej.rows import check_header

logger = logging.getLogger(__name__)

KAGGLE_DATASET = "sumitm004/arxiv-scientific-research-papers-dataset"
PIECE_BYTES = 16 << 20
BOMB_BYTES, BOMB_RATIO = 1 << 30, 100  # text is packed to a third or a tenth


@dataclass(frozen=True)
class Pin:
    """The version of a data file that its .dvc file names."""

    file: Path  # the .dvc file
    md5: str
    size: int
    kaggle_version: int | None  # of KAGGLE_DATASET, where the file came from there

    @classmethod
    def of(cls, target: Path) -> "Pin | None":
        """Return what `<target>.dvc` pins, None if there is no such file.

        Raises:
            InputError: it is not a .dvc file of one file.
        """
        file = target.with_name(target.name + ".dvc")
        if not file.exists():
            return None
        try:
            content = yaml.safe_load(file.read_text("utf-8"))
            out, = content["outs"]
            return cls(file, out["md5"], out["size"], (content.get("meta") or {}).get("kaggle"))
        except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{file}: not a .dvc file of one file ({error!r}); take it back from "
                             f"git: git checkout {file}") from error

    def matches(self, path: Path) -> bool:
        """Return whether the file at `path` is this version: by size, then by checksum."""
        return path.stat().st_size == self.size and checksum(path, "md5") == self.md5


def fetch_csv(target: Path, source: Path | None = None, *, accept: bool = False) -> None:
    """Put the pinned version of the papers in place as `target`.

    Without a source it is looked for in place, in DVC's cache and remote, and on Kaggle, and
    another version is an error. A source that is named is taken; if it is another version, a
    warning says so.

    Args:
        target: the CSV; what it must be is pinned by `<target>.dvc`, if there is one.
        source: a zip, a CSV or a folder with one CSV.
        accept: take another version than the pinned one, and pin that.

    Raises:
        InputError: nothing there, several CSVs, a broken file, another version, or one in place
            that nobody pinned. Then `target` is as it was.
    """
    pin = Pin.of(target)
    if accept:
        require_repository(target)
    if source is not None:
        _install(source, target, None)
        kaggle_version = None
        if pin is not None and not accept and not pin.matches(target):
            logger.warning(
                "%s is another version of the data: md5 %s, but %s pins %s; to make it the new "
                "version: make data ACCEPT=1 SOURCE=%s", target, checksum(target, "md5"), pin.file,
                pin.md5, shlex.quote(str(target)))
    else:
        if pin is not None and not accept:
            if target.exists() and pin.matches(target):
                return
            if target.exists():
                raise _not_pinned(target, pin)
            if _pull(pin.file) and pin.matches(target):
                return
        folder, kaggle_version = _download(None if accept or pin is None else pin.kaggle_version)
        _install(folder, target, None if accept else pin)
    if accept:
        pin_version(target, kaggle_version)


def _install(source: Path, target: Path, pin: Pin | None) -> None:
    """Put the CSV that `source` is or holds in place, if its header and version are right."""
    if not source.exists():
        raise InputError(f"SOURCE: nothing at {source}; name a zip, a CSV or a folder")
    path = source
    if os.access(source, os.R_OK) and source.is_dir():
        path = source / _only_csv([p.name for p in source.iterdir() if p.is_file()], source)
    if not os.access(path, os.R_OK):
        raise InputError(f"SOURCE: {path} may not be read; change its permissions")
    with replacing(target) as aside:
        if zipfile.is_zipfile(path):
            _extract_csv(path, aside)
        elif path.suffix == ".zip":
            raise InputError(f"SOURCE: {path} is not a whole zip; download it again")
        else:
            shutil.copyfile(path, aside)
        check_header(aside, named=source)
        if pin is not None and not pin.matches(aside):
            raise InputError(
                f"SOURCE: {source} holds another version of the data: md5 "
                f"{checksum(aside, 'md5')} of {aside.stat().st_size:,} bytes, but {pin.file} pins "
                f"{pin.md5} of {pin.size:,} bytes; make this one the new version of the data with "
                "--accept (`make data ACCEPT=1`), or name the pinned one as SOURCE")
        if target.is_file() and not filecmp.cmp(aside, target, shallow=False):
            keep_version(target)


def _extract_csv(source: Path, target: Path) -> None:
    try:
        with zipfile.ZipFile(source) as archive:
            member = archive.getinfo(_only_csv(archive.namelist(), source))
            most = max(BOMB_BYTES, BOMB_RATIO * source.stat().st_size)
            if member.file_size > most:
                raise InputError(
                    f"SOURCE: {source} would unpack to {member.file_size:,} bytes, over "
                    f"{BOMB_RATIO} times its size; if that is right, unpack it and name the CSV")
            # zipfile reads no more bytes than that; the member's name is not used as a path
            with archive.open(member) as packed, open(target, "wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, PIECE_BYTES)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"SOURCE: {source} is broken ({error}); download it again") from error


def _only_csv(names: list[str], source: Path) -> str:
    found = [name for name in names  # macOS puts a shadow of each file into its zips
             if name.lower().endswith(".csv") and not name.startswith("__MACOSX/")]
    if len(found) != 1:
        raise InputError(f"SOURCE: {source} holds {len(found)} CSV files {found[:5]}, and nej "
                         "needs exactly one; name the CSV itself")
    return found[0]


def dvc(*arguments: str | Path, cwd: Path = Path(".")) -> subprocess.CompletedProcess:
    """Run DVC in a folder of a repository; return its exit code and what it wrote."""
    return subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=cwd, capture_output=True,
                          text=True)


def _pull(dvc_file: Path) -> bool:
    """Return whether DVC's cache or remote had the file, which then is in place."""
    return dvc("pull", "--quiet", dvc_file).returncode == 0


def require_repository(target: Path) -> None:
    """Raise InputError unless `target` is in the DVC repository here, which is to pin it."""
    done = dvc("root")
    root = Path(done.stdout.strip()).resolve()  # the file itself may be a link into the cache
    if done.returncode or not target.parent.resolve().is_relative_to(root):
        raise InputError(f"{target} is outside of the DVC repository here, so that nothing could "
                         "pin its new version; name a file in the repository, or start there")


def keep_version(target: Path) -> None:
    """Put the version that is in place into DVC's cache: it is about to be replaced.

    Raises:
        InputError: it is another one than `<target>.dvc` pins, so that it could not be found again.
    """
    pin = Pin.of(target)
    if pin is None or not target.is_file():
        return
    if not pin.matches(target):
        raise _not_pinned(target, pin)
    done = dvc("commit", "--force", pin.file)
    if done.returncode != 0:
        raise InputError(f"{target}: `dvc commit {pin.file}` failed ({reason(done)}), and without "
                         "it the present version would be in no cache")


def _not_pinned(target: Path, pin: Pin) -> InputError:
    return InputError(
        f"{target} is there, but is not the version that {pin.file} pins (md5 "
        f"{checksum(target, 'md5')}, pinned {pin.md5}); pin it with `dvc add {target}`, or move it "
        "away")


def reason(done: subprocess.CompletedProcess) -> str:
    """Return in one line why DVC failed."""
    lines = done.stderr.strip().splitlines() or ["no reason given"]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines[-1:])[0].rstrip(":")[:200]


def pin_version(target: Path, kaggle_version: int | None = None) -> None:
    """Pin the file that is in place and put it into DVC's cache, from where `dvc push` takes it."""
    before = Pin.of(target)
    done = dvc("add", target)
    if done.returncode != 0:
        raise InputError(f"{target} is in place, but `dvc add {target}` failed "
                         f"({reason(done)})")
    file = target.with_name(target.name + ".dvc")
    content = yaml.safe_load(file.read_text("utf-8"))
    if kaggle_version is not None:
        content["meta"] = {"kaggle": kaggle_version}
    elif before is None or content["outs"][0]["md5"] != before.md5:
        content.pop("meta", None)
    with replacing(file) as aside:
        aside.write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
    logger.info("%s pins this version; commit it, and `dvc push` where you have a remote", file)


def _download(version: int | None) -> tuple[Path, int]:
    """Return the folder of Kaggle's data set and its version; None asks for the newest.

    kagglehub shows progress, checks what it gets, goes on with a download that was stopped, and
    keeps it in its cache.
    """
    import kagglehub
    handle = KAGGLE_DATASET + ("" if version is None else f"/versions/{version}")
    logger.info("fetching %s from Kaggle", handle)
    try:
        folder = Path(kagglehub.dataset_download(handle))
    except Exception as error:  # its own, requests', urllib3's, the disk's
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(
            f"cannot fetch {handle} from Kaggle: {said}; try again (it goes on where it "
            f"stopped), or download the zip from https://www.kaggle.com/datasets/{KAGGLE_DATASET} "
            "in a browser, then `make data SOURCE=the-zip`") from error
    return folder, int(folder.name)
