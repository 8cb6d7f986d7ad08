"""How every script runs: logging, exit codes, no traceback for a user's mistake."""

import argparse
import gc
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Python puts this folder first, where scripts/evaluate.py would hide the package evaluate;
# the repository's root in its place makes nej importable from a plain checkout
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from nej import InputError  # noqa: E402


def run(main: Callable[[list[str]], int | None]) -> None:
    """Call `main` with the command line and exit: 0, 2 for a user's mistake, 1 for ours.

    `--debug` anywhere shows tracebacks and the libraries' own logs; 130 is an interrupt.
    """
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    _set_up_logging(debug)
    _take_cores()
    try:
        sys.exit(main(arguments))
    except InputError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; what was written is whole, and the same command goes on",
              file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        print(f"error in nej: {type(error).__name__}: {error}; --debug shows where",
              file=sys.stderr)
        sys.exit(1)


@contextmanager
def importing() -> Iterator[None]:
    """Leave out the search for garbage while libraries are imported, which make none.

    It would take a fifth of the time. What is there afterwards is not searched any more. Ctrl-C
    waits until all are there: some of them abort, or go on, when it comes in between.
    """
    gc.collect()  # what is garbage already
    gc.disable()
    pressed: list[int] = []
    handler = signal.getsignal(signal.SIGINT)
    if callable(handler):  # not where it is ignored
        signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield
    finally:
        if callable(handler):
            signal.signal(signal.SIGINT, handler)
        gc.freeze()
        gc.enable()
    if pressed:
        raise KeyboardInterrupt


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are InputErrors, and that takes no shortened options."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str):
        """Raise InputError with argparse's message."""
        raise InputError(f"command line: {message}; --help shows what there is")


def _take_cores() -> None:
    """Undo the one thread that a launcher asks for where nobody has said how many.

    `accelerate launch` does it to a lone process on a CPU, too, which then takes twice as long on
    two cores. torch takes all cores instead; `device.share_cores` gives several processes a share.
    Who means one sets MKL_NUM_THREADS as well, which launchers leave alone.
    """
    launched = {"ACCELERATE_DYNAMO_BACKEND", "TORCHELASTIC_RUN_ID"} & set(os.environ)
    if (launched and os.environ.get("OMP_NUM_THREADS") == "1"
            and "MKL_NUM_THREADS" not in os.environ):
        del os.environ["OMP_NUM_THREADS"]  # before torch is imported


def _set_up_logging(debug: bool) -> None:
    main_process = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(
        level=logging.INFO if main_process else logging.ERROR, format="%(message)s",
        stream=sys.stderr)
    if debug:
        return
    warnings.simplefilter("ignore")
    for noisy in ("transformers", "datasets", "accelerate", "huggingface_hub", "httpx", "torch",
                  "arxiv", "openTSNE", "onnxscript", "onnx_ir"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
