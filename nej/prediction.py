"""A trained model at work: from papers to logits, embeddings and probabilities."""

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.nn.functional import relu
from tqdm import tqdm
from transformers import DistilBertForSequenceClassification, PreTrainedTokenizerBase

from nej import InputError
from nej.batching import collate, fill
from nej.config import Config, load_config
from nej.device import use_bf16
from nej.fields import collapse_spaces
from nej.files import CONFIG_FILE, require_model
from nej.model import load_classifier, load_tokenizer
from nej.packing import can_pack, pack, packed_first_tokens
from nej.text import tokenize

BATCH_PAPERS = 32
BATCH_TOKENS = {"cpu": 4096, "cuda": 65_536}  # a CPU's cache is small, a GPU wants much at a time
CATEGORIES = Path(__file__).with_name("categories.json")  # of arXiv, by code

logger = logging.getLogger(__name__)


@cache
def category_names() -> dict[str, str]:
    """Return the names of arXiv's categories by their codes."""
    return json.loads(CATEGORIES.read_text("utf-8"))


@dataclass(frozen=True)
class Outputs:
    """What a model makes of papers, in their order."""

    logits: np.ndarray  # float32 (papers, classes)
    embeddings: np.ndarray  # float32 (papers, width): the last layer's first token


@dataclass(frozen=True)
class Backend(ABC):
    """A model directory, loaded to predict; how it computes is the subclass's."""

    model_dir: Path
    config: Config
    names: list[str]  # of the classes, by id
    tokenizer: PreTrainedTokenizerBase
    temperature: float = field(kw_only=True)  # divides logits; 1 before the model was judged

    @property
    def batch_tokens(self) -> int:
        """The most tokens of a batch, padding included, but where a single paper has more."""
        return BATCH_TOKENS["cpu"]

    @abstractmethod
    def compute(self, papers: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Return logits and embeddings, as in Outputs, of the tokens of a batch of papers."""

    def read(self, summaries: Sequence[str], titles: Sequence[str] | None = None
             ) -> list[dict[str, Any]]:
        """Return papers for `run`, cleaned and tokenized as those of the training were: text,
        length, truncated and input_ids (an int32 array) of each.

        Args:
            titles: used if the model reads titles; a paper may have an empty one.

        Raises:
            InputError: a paper without a summary, or half a surrogate pair in a text.
        """
        fields = {"title": list(titles or [""] * len(summaries)), "summary": list(summaries)}
        try:
            papers = pa.table({name: collapse_spaces(pa.array(texts, pa.string()))
                               for name, texts in fields.items()})
        except UnicodeEncodeError as error:
            raise InputError(f"{error.object[:40]!a} has {error.object[error.start]!a}, half of a "
                             f"surrogate pair, as its character {error.start + 1}, and that is no "
                             "text; decode the paper again") from error
        empty = pc.index(papers["summary"], "").as_py()
        if empty >= 0:
            raise InputError(f"paper {empty + 1} of {len(summaries)} has an empty summary; "
                             "there is nothing to sort it by")
        found = tokenize(papers, tokenizer=self.tokenizer, text_fields=self.config.text_fields,
                         max_length=self.config.max_length)
        ids = found["input_ids"].combine_chunks()
        each = np.split(np.array(ids.values), ids.offsets.to_numpy()[1:-1])
        return [paper | {"input_ids": part}
                for paper, part in zip(found.drop_columns("input_ids").to_pylist(), each)]

    def run(self, papers: Any, *, description: str | None = "Predict") -> Outputs:
        """Run the model over tokenized papers: a dataset's split, or what `read` returns.

        Papers of like length share a batch.

        Args:
            description: of the progress bar; None shows none.
        """
        split = hasattr(papers, "select_columns")
        lengths = np.asarray(
            papers["length"][:] if split else [paper["length"] for paper in papers], int)
        if split:
            papers = papers.select_columns(["input_ids"]).with_format("numpy")
        order = np.argsort(-lengths, kind="stable")
        ends = fill(lengths[order].tolist(), self.batch_tokens)
        if not ends:
            return Outputs(np.empty((0, len(self.names)), np.float32), np.empty((0, 0), np.float32))
        found = []
        shown = description is not None and len(ends) > 1
        for start, end in tqdm(zip([0, *ends], ends), total=len(ends), desc=description,
                               disable=None if shown else True):
            rows = order[start:end].tolist()
            found.append(self.compute(papers[rows]["input_ids"] if split
                                      else [papers[row]["input_ids"] for row in rows]))
        back = np.argsort(order)
        return Outputs(*(np.concatenate(arrays)[back] for arrays in zip(*found)))

    def probabilities(self, summaries: Sequence[str], titles: Sequence[str] | None = None
                      ) -> np.ndarray:
        """Return calibrated probabilities of texts, float64 (papers, classes). See `read`."""
        return softmax(self.run(self.read(summaries, titles)).logits, self.temperature)

    def threshold(self, wanted_accuracy: float) -> float | None:
        """Return under which probability to abstain, by calibration.json; None is never.

        Args:
            wanted_accuracy: answers would be right less often than this.
        """
        thresholds = calibration(self.model_dir).get("thresholds", {})
        found = thresholds.get(str(wanted_accuracy))
        if found is None:
            there = ", ".join(key for key, value in thresholds.items() if value is not None)
            logger.warning(
                "%s has no threshold for an accuracy of %s (it has: %s) and will not abstain; "
                "`make evaluate` finds thresholds", self.model_dir, wanted_accuracy,
                there or "none")
        return found


@dataclass(frozen=True)
class Classifier(Backend):
    """A model directory's weights in PyTorch, in bfloat16 if it may; on a CPU without padding."""

    model: DistilBertForSequenceClassification
    bf16: bool

    @classmethod
    def load(cls, model_dir: Path) -> "Classifier":
        """Load a model that scripts/train.py made, to the GPU if there is one that it may use.

        Raises:
            InputError: no finished model there.
        """
        known = backend_fields(model_dir)
        device = "cuda" if torch.cuda.is_available() and not known["config"].use_cpu else "cpu"
        model = load_classifier(str(model_dir)).eval().to(device)
        return cls(**known, model=model, bf16=use_bf16(known["config"], device))

    @property
    def batch_tokens(self) -> int:
        """See Backend."""
        return BATCH_TOKENS["cpu" if self.model.device.type == "cpu" else "cuda"]

    def compute(self, papers: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """See Backend."""
        device = self.model.device
        put_together: Callable[..., dict[str, Any]] = collate
        encode: Callable[..., torch.Tensor] = padded_first_tokens
        if can_pack(device.type, self.bf16):
            put_together, encode = pack, packed_first_tokens
        batch = put_together([{"input_ids": ids, "label": 0} for ids in papers],
                             pad_token_id=self.tokenizer.pad_token_id)
        del batch["labels"]
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16,
                                                    enabled=self.bf16):
            first = encode(self.model, **{
                name: value.to(device) if isinstance(value, torch.Tensor) else value
                for name, value in batch.items()})
            logits = self.model.classifier(relu(self.model.pre_classifier(first)))
        return logits.float().cpu().numpy(), first.float().cpu().numpy()


def backend_fields(model_dir: Path) -> dict[str, Any]:
    """Return what every Backend of a model directory has: the fields of that class.

    Raises:
        InputError: no finished model there.
    """
    require_model(model_dir)
    names = json.loads((model_dir / "config.json").read_text("utf-8"))["id2label"]
    return {"model_dir": model_dir, "config": load_config(model_dir / CONFIG_FILE),
            "names": [names[str(index)] for index in range(len(names))],
            "tokenizer": load_tokenizer(str(model_dir)),
            "temperature": calibration(model_dir).get("temperature", 1.0)}


def calibration(model_dir: Path) -> dict[str, Any]:
    """Return what calibration.json has, nothing before the model was judged."""
    try:
        return json.loads((model_dir / "calibration.json").read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError(f"{model_dir}/calibration.json cannot be read ({error}); "
                         f"`make evaluate MODEL={model_dir}` writes it again") from error


def keep_in_bf16(classifier: Classifier) -> None:
    """Round the linear layers' weights once and not in each batch, if they are read in bfloat16.

    The logits are the same, bit for bit; a lone paper takes about half the time.
    """
    if classifier.bf16:
        for module in classifier.model.modules():
            if isinstance(module, torch.nn.Linear):
                module.to(torch.bfloat16)


def padded_first_tokens(model: DistilBertForSequenceClassification, input_ids: torch.Tensor,
                        attention_mask: torch.Tensor) -> torch.Tensor:
    """Return the last layer's first token of each padded paper, (papers, width)."""
    return model.distilbert(input_ids, attention_mask).last_hidden_state[:, 0]


def softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Return softmax(logits / temperature), float64 (papers, classes)."""
    return torch.from_numpy(logits / temperature).double().softmax(-1).numpy()
