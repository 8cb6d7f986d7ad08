"""Kill a training run again and again, and see that nothing is lost.

    python benchmarks/kill_test.py --kills 50

A run on synthetic papers with a small random model saves a checkpoint every few steps. It is
started with the same command until it ends, and killed with SIGKILL at random moments, every other
time while it saves. At the end its weights must be those of a run that was never killed, bit for
bit; no start may fail; nothing may be left over. Exit code 0 if all of that is so.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)


def make_project(folder: Path, steps: int, *, max_length: int = 64, **sizes: int) -> Path:
    """Write papers, a random DistilBERT and a config into `folder`; return the config's path.

    Args:
        sizes: of the model, in place of those of a very small one.
    """
    import re
    from collections import Counter

    import torch
    from transformers import BertTokenizer, DistilBertConfig, DistilBertModel

    from scripts.make_sample import generate, write_csv
    write_csv(folder / "papers.csv", 1000, 3)
    words = Counter(word for row in generate(300, 3)
                    for word in re.findall(r"[a-z]+", row["summary"].lower()))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]",
                  *(word for word, _ in words.most_common(800))]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), "utf-8")
    torch.manual_seed(0)
    sizes = {"dim": 64, "n_layers": 2, "n_heads": 2, "hidden_dim": 128} | sizes
    DistilBertModel(DistilBertConfig(
        vocab_size=len(vocabulary), max_position_embeddings=max_length, **sizes)).save_pretrained(
            folder / "start")
    BertTokenizer(vocab=str(folder / "vocab.txt"), model_max_length=max_length,
                  model_input_names=["input_ids", "attention_mask"]).save_pretrained(
                      folder / "start")
    config = folder / "config.json"
    config.write_text(json.dumps({
        "data_path": str(folder / "papers.csv"), "model_name_or_path": str(folder / "start"),
        "max_length": max_length, "max_steps": steps, "eval_steps": 5, "learning_rate": 1e-3,
        "report_to": "none", "do_predict": False, "reports_dir": str(folder / "reports"),
        "near_duplicate_threshold": None}), "utf-8")
    return config


def start(config: Path, output: Path) -> subprocess.Popen:
    """Start the command that a user gives."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "train.py"), "--config", str(config),
         "--output_dir", str(output)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True)


def run_until_killed(config: Path, output: Path, draw: random.Random, in_save: bool
                     ) -> tuple[int | None, str, bool]:
    """Start, kill at a random moment; return the exit code if it ended first, its output, and
    whether a save was under way when it was killed.
    """
    process = start(config, output)
    partial = output.with_name(output.name + ".partial") / "checkpoints"
    saving = partial / ".saving"
    before = {path.name for path in partial.glob("checkpoint-*")}
    if in_save:
        while process.poll() is None and not saving.exists():
            time.sleep(0.0005)
        time.sleep(draw.uniform(0, 0.01))  # a save of this small model takes no longer
    else:  # in the second after its first new checkpoint, or in start-up
        patience = time.monotonic() + draw.choice((draw.uniform(0, 9), 60))
        while process.poll() is None and time.monotonic() < patience and not (
                {path.name for path in partial.glob("checkpoint-*")} - before):
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 1))
    under_way = saving.exists()
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None, "", under_way
    return process.returncode, process.stdout.read(), False


def main() -> int:
    """Run it; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, help="optimizer steps (30 for each kill)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from nej.files import checksum
    draw = random.Random(options.seed)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nej-kill-") as scratch:
        folder = Path(scratch)
        os.environ["HF_HOME"] = str(folder / "cache")
        config = make_project(folder, options.steps or 30 * options.kills)
        whole = start(config, folder / "whole")
        output, _ = whole.communicate()
        if whole.returncode != 0:
            print(output)
            return 1
        kills = in_save = starts = 0
        code = None
        while code is None:
            starts += 1
            if kills < options.kills:
                code, output, under_way = run_until_killed(
                    config, folder / "killed", draw, in_save=kills % 2 == 0)
            else:
                process = start(config, folder / "killed")
                output, _ = process.communicate()
                code, under_way = process.returncode, False
            kills += code is None
            in_save += under_way
            print(f"\r{kills} kills, {in_save} of them in a save, {time.monotonic() - began:.0f} s",
                  end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        if code == 2 and "holds a finished run" in output:  # the last kill came after its end
            code = 0
        if code != 0:
            print(f"start {starts} failed with exit code {code}:\n{output[-3000:]}")
            return 1
        weights = [checksum(folder / name / "model.safetensors") for name in ("whole", "killed")]
        left = sorted(path.name for path in folder.iterdir()) + [
            str(path.relative_to(folder)) for path in (folder / "killed").glob(".*")]
        expected = ["cache", "config.json", "killed", "papers.csv", "reports", "start",
                    "vocab.txt", "whole"]
        print(f"{kills} kills, {in_save} of them in a save; {starts} starts; weights "
              f"{'identical' if weights[0] == weights[1] else 'DIFFERENT'} ({weights[0][:16]}); "
              f"left over: {sorted(set(left) - set(expected)) or 'nothing'}")
        return int(weights[0] != weights[1] or set(left) != set(expected)
                   or kills < options.kills)


if __name__ == "__main__":
    sys.exit(main())
