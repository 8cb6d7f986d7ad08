"""A trained model at work: from papers to logits, embeddings and probabilities."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.nn.functional import relu
from tqdm import tqdm
from transformers import DistilBertForSequenceClassification, PreTrainedTokenizerBase

from nej import InputError
from nej.batching import collate
from nej.config import Config, load_config
from nej.dataset import tokenize
from nej.device import use_bf16
from nej.fields import collapse_spaces
from nej.files import CONFIG_FILE
from nej.model import load_classifier, load_tokenizer
from nej.packing import pack, packed_first_tokens

BATCH_PAPERS = 32


@dataclass(frozen=True)
class Outputs:
    """What a model makes of papers, in their order."""

    logits: np.ndarray  # float32 (papers, classes)
    embeddings: np.ndarray  # float32 (papers, width): the last layer's first token


@dataclass(frozen=True)
class Classifier:
    """A model directory, loaded to predict."""

    model_dir: Path
    config: Config
    names: list[str]  # of the classes, by id
    tokenizer: PreTrainedTokenizerBase
    model: DistilBertForSequenceClassification
    bf16: bool
    temperature: float  # by which logits are divided; 1 before the model was judged

    @classmethod
    def load(cls, model_dir: Path) -> "Classifier":
        """Load a model that scripts/train.py made, to the GPU if there is one that it may use.

        Raises:
            InputError: no finished model there.
        """
        if not (model_dir / "manifest.json").exists():
            raise InputError(f"{model_dir} is not a finished model directory: no manifest.json in "
                             "it; train one with scripts/train.py, or name another")
        config = load_config(model_dir / CONFIG_FILE)
        device = "cuda" if torch.cuda.is_available() and not config.use_cpu else "cpu"
        model = load_classifier(str(model_dir)).eval().to(device)
        try:
            calibration = json.loads((model_dir / "calibration.json").read_text("utf-8"))
        except FileNotFoundError:
            calibration = {}
        return cls(
            model_dir=model_dir, config=config,
            names=[model.config.id2label[index] for index in range(model.config.num_labels)],
            tokenizer=load_tokenizer(str(model_dir)), model=model, bf16=use_bf16(config, device),
            temperature=calibration.get("temperature", 1.0))

    def read(self, summaries: Sequence[str], titles: Sequence[str] | None = None
             ) -> list[dict[str, Any]]:
        """Return papers for `run`, cleaned and tokenized as those of the training were.

        Args:
            titles: used if the model reads titles; a paper may have an empty one.

        Raises:
            InputError: a paper without a summary, or half a surrogate pair in a text.
        """
        fields = {"title": titles or [""] * len(summaries), "summary": summaries}
        try:
            fields = {name: collapse_spaces(pa.array(texts, pa.string())).to_pylist()
                      for name, texts in fields.items()}
        except UnicodeEncodeError as error:
            raise InputError(f"{error.object[:40]!a} has {error.object[error.start]!a}, half of a "
                             f"surrogate pair, as its character {error.start + 1}, and that is no "
                             "text; decode the paper again") from error
        for index, summary in enumerate(fields["summary"]):
            if not summary:
                raise InputError(f"paper {index + 1} of {len(summaries)} has an empty summary; "
                                 "there is nothing to sort it by")
        columns = tokenize(fields, tokenizer=self.tokenizer, text_fields=self.config.text_fields,
                           max_length=self.config.max_length)
        return [dict(zip(columns, values)) for values in zip(*columns.values())]

    def run(self, papers: Any, *, description: str = "Predict") -> Outputs:
        """Run the model over tokenized papers: a dataset's split, or what `read` returns.

        Papers of like length share a batch. The model computes in bfloat16 if it may; on a CPU
        without padding.
        """
        device = self.model.device
        put_together, encode = collate, padded_first_tokens
        if device.type == "cpu":
            put_together, encode = pack, packed_first_tokens
        lengths = np.asarray(papers["length"] if hasattr(papers, "select_columns")
                             else [paper["length"] for paper in papers], int)
        order = np.argsort(-lengths, kind="stable")
        if hasattr(papers, "select_columns"):
            papers = papers.select_columns(["input_ids"])
        logits = np.empty((len(papers), self.model.config.num_labels), dtype=np.float32)
        embeddings = np.empty((len(papers), self.model.config.dim), dtype=np.float32)
        starts = range(0, len(order), BATCH_PAPERS)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16,
                                                    enabled=self.bf16):
            for start in tqdm(starts, desc=description, disable=None if len(starts) > 1 else True):
                rows = order[start:start + BATCH_PAPERS]
                batch = put_together(
                    [{"input_ids": papers[int(row)]["input_ids"], "label": 0} for row in rows],
                    pad_token_id=self.tokenizer.pad_token_id)
                del batch["labels"]
                first = encode(self.model, **{
                    name: tensor.to(device) for name, tensor in batch.items()})
                hidden = relu(self.model.pre_classifier(first))
                logits[rows] = self.model.classifier(hidden).float().cpu().numpy()
                embeddings[rows] = first.float().cpu().numpy()
        return Outputs(logits, embeddings)

    def probabilities(self, summaries: Sequence[str], titles: Sequence[str] | None = None
                      ) -> np.ndarray:
        """Return calibrated probabilities of texts, float64 (papers, classes). See `read`."""
        return softmax(self.run(self.read(summaries, titles)).logits, self.temperature)


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
