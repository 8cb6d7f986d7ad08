"""A model as an ONNX graph with 8-bit weights, kept if it answers as the model does."""

import io
import logging
import shutil
import tempfile
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch.nn.functional import relu
from transformers import DistilBertForSequenceClassification

from nej.files import checksum, replacing, write_json
from nej.judging.calibration import share
from nej.judging.embeddings import sample
from nej.judging.lineage import own_dataset
from nej.model import load_classifier
from nej.predicting.backends import EXPORT, GRAPH, RECORD, Exported, papers_per_second
from nej.prediction import Classifier, keep_in_bf16

MOST_PAPERS = 2000  # test papers that it is judged on
MOST_ACCURACY_LOST = 0.005
MOST_CHANGED = 0.01  # share of labels
FAR = -1e9  # added to the score of a token that is padding

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportReport:
    """How an export compares with its model in PyTorch, on test papers."""

    papers: int
    accuracy: float
    exported_accuracy: float
    changed: int  # labels
    largest_difference: float  # of a logit
    papers_per_second: float
    exported_papers_per_second: float
    size_mib: float
    exported_size_mib: float

    @property
    def refused(self) -> str | None:
        """Return why it is not to be used, None if it is."""
        if round(self.accuracy - self.exported_accuracy, 9) > MOST_ACCURACY_LOST:
            return f"the accuracy falls by more than {MOST_ACCURACY_LOST}"
        if self.changed > MOST_CHANGED * self.papers:
            return f"over {MOST_CHANGED:.0%} of the labels change"
        return None

    def text(self) -> str:
        """Return the figures and the verdict."""
        lost = self.accuracy - self.exported_accuracy
        low, high = share(np.arange(self.papers) < self.changed)["interval"]
        return "\n".join([
            f"On {self.papers:,} test papers, exported beside PyTorch:",
            f"  accuracy    {self.exported_accuracy:.4f} and {self.accuracy:.4f} ({-lost:+z.4f})",
            f"  labels      {self.changed} differ: {self.changed / self.papers:.2%} "
            f"({low:.2%}-{high:.2%}); logits by at most {self.largest_difference:.2f}",
            f"  papers/s    {self.exported_papers_per_second:.0f} and {self.papers_per_second:.0f} "
            "(a short measurement)",
            f"  size        {self.exported_size_mib:.0f} and {self.size_mib:.0f} MiB",
            f"refused, and not kept: {self.refused}" if self.refused else "kept"])


class Graph(torch.nn.Module):
    """DistilBERT's forward pass, of the last layer the first token only, in exportable terms."""

    def __init__(self, model: DistilBertForSequenceClassification):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, lengths: torch.Tensor
                ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits (papers, classes) and embeddings (papers, width).

        Args:
            input_ids: int64 (papers, tokens), padded.
            lengths: int64 (papers,).
        """
        encoder = self.model.distilbert
        places = torch.arange(input_ids.shape[1])
        hidden = encoder.embeddings.LayerNorm(
            encoder.embeddings.word_embeddings(input_ids)
            + encoder.embeddings.position_embeddings(places)[None])
        padding = torch.where(places[None] < lengths[:, None], 0.0, FAR)[:, None, None]
        *layers, last = encoder.transformer.layer
        for layer in layers:
            hidden = self._block(layer, hidden, hidden, padding)
        first = self._block(last, hidden[:, :1], hidden, padding)[:, 0]
        return self.model.classifier(relu(self.model.pre_classifier(first))), first

    def _block(self, layer: Any, asking: torch.Tensor, asked: torch.Tensor,
               padding: torch.Tensor) -> torch.Tensor:
        attention = layer.attention

        def heads(tokens: torch.Tensor) -> torch.Tensor:
            return tokens.unflatten(2, (attention.n_heads, -1)).transpose(1, 2)
        query, key, value = (heads(linear(tokens)) for linear, tokens in (
            (attention.q_lin, asking), (attention.k_lin, asked), (attention.v_lin, asked)))
        scores = query @ key.transpose(2, 3) * attention.attention_head_size ** -0.5 + padding
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        hidden = layer.sa_layer_norm(attention.out_lin(mixed) + asking)
        update = layer.ffn.lin2(layer.ffn.activation(layer.ffn.lin1(hidden)))
        return layer.output_layer_norm(update + hidden)


def export(model_dir: Path, *, most_papers: int = MOST_PAPERS) -> ExportReport:
    """Export a model, compare it with PyTorch on test papers, and keep it if it is as good.

    It is kept in the model directory, as EXPORT, with a record of what was found.

    Args:
        most_papers: test papers to compare on, drawn with the seed of the training.

    Raises:
        InputError: no model there, or the data that it was judged on are not.
    """
    classifier = Classifier.load(model_dir)
    test = own_dataset(model_dir)["test"]
    test = test.select(sample(len(test), most_papers, seed=classifier.config.seed))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / EXPORT.name
        folder.mkdir()
        onnx.save(quantize(trace(load_classifier(str(model_dir)).eval())), folder / GRAPH)
        exported = Exported.load(model_dir, folder=folder)
        report = _compare(classifier, exported, test, sizes=[
            file.stat().st_size for file in (model_dir / "model.safetensors", folder / GRAPH)])
        if report.refused:
            return report
        write_json(folder / RECORD, {
            "weights_sha256": checksum(model_dir / "model.safetensors"),
            "graph_sha256": checksum(folder / GRAPH), "made": datetime.now(UTC).isoformat(),
            "versions": {name: version(name) for name in ("torch", "onnx", "openvino")},
            "judged": asdict(report)})
        with replacing(model_dir / EXPORT) as aside:
            shutil.copytree(folder, aside)
    return report


def trace(model: DistilBertForSequenceClassification) -> onnx.ModelProto:
    """Return a model as an ONNX graph: input_ids and lengths in, logits and embeddings out."""
    logger.info("exporting the graph, in ten seconds or so")
    papers, tokens = (torch.export.Dim(name, min=1, max=most) for name, most in (
        ("papers", 1 << 20), ("tokens", model.config.max_position_embeddings)))
    for noisy in ("torch.onnx", "onnxscript"):  # they tell of every step
        logging.getLogger(noisy).setLevel(logging.ERROR)
    with redirect_stdout(io.StringIO()):  # and so does this
        program: Any = torch.onnx.export(
            Graph(model).eval(), (torch.ones(3, 4, dtype=torch.long), torch.tensor([4, 3, 2])),
            dynamo=True, external_data=False, verbose=False,
            input_names=["input_ids", "lengths"], output_names=["logits", "embeddings"],
            dynamic_shapes={"input_ids": {0: papers, 1: tokens}, "lengths": {0: papers}})
    return program.model_proto


def quantize(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Store the weights of the linear layers, but the last, as whole numbers of 8 bits.

    Each output has a scale of its own: its largest weight becomes 127 or -127.
    """
    weights = {tensor.name: tensor for tensor in graph.graph.initializer}
    for node in [node for node in graph.graph.node if node.op_type in ("MatMul", "Gemm")]:
        name = node.input[1]
        if name not in weights or "logits" in node.output:
            continue
        axis = int(not any(a.name == "transB" and a.i for a in node.attribute))  # of the outputs
        weight = numpy_helper.to_array(weights[name])
        scale = np.abs(weight).max(axis=1 - axis, keepdims=True) / 127
        whole = np.round(weight / np.maximum(scale, np.finfo(np.float32).tiny)).astype(np.int8)
        graph.graph.initializer.remove(weights.pop(name))
        graph.graph.initializer.extend([
            numpy_helper.from_array(whole, f"{name}_whole"),
            numpy_helper.from_array(scale.ravel().astype(np.float32), f"{name}_scale")])
        graph.graph.node.insert(0, onnx.helper.make_node(
            "DequantizeLinear", [f"{name}_whole", f"{name}_scale"], [name], axis=axis))
    onnx.checker.check_model(graph)
    return graph


def _compare(classifier: Classifier, exported: Exported, test: Any, *, sizes: list[int]
             ) -> ExportReport:
    labels = np.asarray(test["label"][:])
    logits, other = (backend.run(test, description=f"Predict, {name}").logits
                     for backend, name in ((classifier, "PyTorch"), (exported, "exported")))
    keep_in_bf16(classifier)
    rates = [papers_per_second(backend) for backend in (classifier, exported)]
    return ExportReport(
        papers=len(labels), accuracy=float((logits.argmax(1) == labels).mean()),
        exported_accuracy=float((other.argmax(1) == labels).mean()),
        changed=int((logits.argmax(1) != other.argmax(1)).sum()),
        largest_difference=float(np.abs(logits - other).max()),
        papers_per_second=rates[0], exported_papers_per_second=rates[1],
        size_mib=sizes[0] / 2**20, exported_size_mib=sizes[1] / 2**20)
