"""An export answers as its model does, or is refused; the faster of the two is used."""

import copy
import logging
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from nej import InputError
from nej.config import load_config
from nej.manifest import origin, write_manifest
from nej.model import load_classifier
from nej.predicting import backends
from nej.predicting import export as exporting
from nej.predicting.backends import (
    EXPORT, GRAPH, Exported, backend_name, export_fault, load_backend,
)
from nej.predicting.export import export
from nej.prediction import Classifier
from nej.training import train


@pytest.fixture(scope="module")
def graph(model_dir) -> onnx.ModelProto:
    """Return the model's graph, which takes seconds to make."""
    return exporting.trace(load_classifier(str(model_dir)).eval())


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, papers_csv, tiny_model) -> Path:
    """Return the directory of a short run."""
    config = replace(
        load_config(), data_path=str(papers_csv), model_name_or_path=tiny_model, max_length=64,
        output_dir=str(tmp_path_factory.mktemp("run") / "model"), report_to="none", top_k=3,
        num_train_epochs=1.0, learning_rate=1e-3, bf16=False)
    found = train(config, finish=lambda folder, result: write_manifest(
        folder, config, result, origin(config))).model_dir
    model = load_classifier(str(found))
    with torch.no_grad():  # else all papers would be answered alike
        for weights in model.parameters():
            weights.mul_(8 if weights.dim() == 2 else 1)
    model.save_pretrained(found)
    return found


@pytest.fixture
def traced(graph, monkeypatch):
    """Let each export begin with the same graph."""
    monkeypatch.setattr(exporting, "trace", lambda model: copy.deepcopy(graph))


@pytest.fixture
def report(model_dir, traced):
    """Return the report of an export that was kept."""
    found = export(model_dir)
    assert not found.refused
    return found


def test_it_answers_as_the_model_does_alone_and_in_a_batch(report, model_dir):
    model, exported = Classifier.load(model_dir), Exported.load(model_dir)
    texts = [" ".join(["robot image"] * size) for size in (1, 40, 7, 12)] + ["A robot, an image."]
    papers = model.read(texts)
    expected, found = model.run(papers), exported.run(papers)
    assert found.logits == pytest.approx(expected.logits, abs=0.02)
    assert found.embeddings == pytest.approx(expected.embeddings, abs=0.1)
    for paper, logits in zip(papers, found.logits):
        assert exported.run([paper]).logits[0] == pytest.approx(logits, abs=0.01)
    assert exported.run([]).logits.shape == (0, 3)
    assert sys.modules["openvino_telemetry"] is None  # it sends nothing
    assert exported.names == model.names and exported.temperature == model.temperature


def test_the_report_says_what_it_costs(report, model_dir):
    assert report.papers > 20 and report.changed <= 0.01 * report.papers
    assert "differ: " in report.text() and report.text().endswith("kept")
    assert {path.suffix for path in (model_dir / EXPORT).iterdir()} == {".onnx", ".json"}


def test_weights_are_rounded_to_whole_numbers_of_eight_bits(graph):
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in graph.graph.initializer}
    quantized = exporting.quantize(copy.deepcopy(graph))
    whole = {t.name.removesuffix("_whole"): onnx.numpy_helper.to_array(t)
             for t in quantized.graph.initializer if t.name.endswith("_whole")}
    scales = {t.name.removesuffix("_scale"): onnx.numpy_helper.to_array(t)
              for t in quantized.graph.initializer if t.name.endswith("_scale")}
    axes = {node.output[0]: node.attribute[0].i for node in quantized.graph.node
            if node.op_type == "DequantizeLinear"}
    assert len(whole) == 2 * 6 + 1  # of each layer, and the one before the classifier
    for name, numbers in whole.items():
        assert numbers.dtype == np.int8 and numbers.max() == 127 or numbers.min() == -127
        scale = scales[name].reshape((-1, 1) if axes[name] == 0 else (1, -1))
        assert np.abs(numbers * scale - tensors[name]).max() <= 0.501 * scale.max()


def ruin(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Turn the classifier's weights round."""
    last = next(node for node in graph.graph.node if "logits" in node.output)
    tensor = next(t for t in graph.graph.initializer if t.name == last.input[1])
    tensor.CopyFrom(onnx.numpy_helper.from_array(
        -onnx.numpy_helper.to_array(tensor), tensor.name))
    return graph


def test_an_export_that_answers_otherwise_is_refused(model_dir, traced, monkeypatch, tmp_path):
    before = sorted(model_dir.rglob("*"))
    monkeypatch.setattr(exporting, "quantize", ruin)
    report = export(model_dir)
    assert report.refused and "refused, and not kept" in report.text()
    assert sorted(model_dir.rglob("*")) == before
    good = replace(report, papers=1000, accuracy=0.8, exported_accuracy=0.795, changed=10)
    assert good.refused is None
    assert "accuracy falls" in replace(good, exported_accuracy=0.794).refused
    assert "labels change" in replace(good, changed=11).refused


def test_the_fastest_is_chosen_and_logged(report, model_dir, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "nej")
    for fast in ("torch", "openvino"):
        monkeypatch.setattr(backends, "papers_per_second", lambda backend: 20.0 + 10 * (
            backend_name(backend) == fast))
        assert backend_name(load_backend(model_dir)) == fast
        assert f"back end: {fast} (torch: " in caplog.messages[-1]
        assert f"{fast}: 30 papers/s" in caplog.messages[-1]
    monkeypatch.undo()
    assert backends.papers_per_second(load_backend(model_dir, "openvino")) > 0
    assert backend_name(load_backend(model_dir, "torch")) == "torch"
    with pytest.raises(InputError, match="--backend is 'onnx'; there are torch and openvino"):
        load_backend(model_dir, "onnx")


def test_an_export_of_other_weights_or_one_that_was_changed_is_not_used(
        report, model_dir, caplog):
    caplog.set_level(logging.INFO, "nej")
    for file, fault in ((model_dir / EXPORT / GRAPH, "was changed since"),
                        (model_dir / "model.safetensors", "of other weights"),
                        (model_dir / EXPORT / backends.RECORD, "cannot be read")):
        content = file.read_bytes()
        if file.suffix == ".safetensors":  # a digit of a bias
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        else:
            file.write_bytes(content[:-9])
        assert fault in export_fault(model_dir)
        assert backend_name(load_backend(model_dir)) == "torch" and fault in caplog.text
        with pytest.raises(InputError, match=f"{fault}; `make export MODEL="):
            load_backend(model_dir, "openvino")
        file.write_bytes(content)
    assert export_fault(model_dir) is None
