"""What is logged of a training's speed: real tokens, padding, share of the machine's rate."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DistilBertConfig, DistilBertForSequenceClassification, TrainerCallback

from nej import throughput
from nej.batching import collate
from nej.model import freeze
from nej.packing import pack
from nej.throughput import Throughput, training_flops
from nej.training import train


@pytest.fixture
def model() -> DistilBertForSequenceClassification:
    return DistilBertForSequenceClassification(DistilBertConfig(
        vocab_size=50, max_position_embeddings=16, dim=16, n_layers=2, n_heads=2, hidden_dim=32))


@pytest.fixture
def clock(monkeypatch):
    """Return a list whose one number is the time."""
    now = [100.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(throughput, "matmul_rate", lambda device, bf16: 1e6)
    return now


PAPERS = [{"input_ids": [1] * length, "label": 0} for length in (8, 4, 2)]


@pytest.mark.parametrize("put_together, padding", [(collate, 1 - 14 / 24), (pack, 1 - 14 / 32)])
def test_real_tokens_are_counted_and_padding_is_a_share(model, clock, put_together, padding):
    counter = Throughput(model, bf16=False)
    clock[0] += 50  # loading
    counter.count(put_together(PAPERS, pad_token_id=0))
    clock[0] += 2
    counter.count(put_together(PAPERS, pad_token_id=0))
    clock[0] += 10
    counter.leave_out(8)  # a validation
    found = counter.read()
    assert found["tokens_per_second"] == 28 / 4
    assert found["padding_share"] == pytest.approx(padding, abs=1e-4)
    flops = training_flops(model, 28, 2 * (64 + 16 + 4))
    assert found["mfu"] == pytest.approx(flops / 4 / 1e6, abs=1e-4)
    assert counter.read() == {}


def test_operations_are_those_that_torch_counts(model):
    """Of one paper of 8 tokens, embeddings, norms and head left out."""
    hidden = torch.ones(1, 8, 16, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        mask = torch.zeros(1, 1, 8, 8)
        for layer in model.distilbert.transformer.layer:
            layer.attention.config._attn_implementation = "eager"
            hidden = layer(hidden, mask)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        hidden.sum().backward()
    assert training_flops(model, 8, 64) == pytest.approx(counter.get_total_flops())


def test_a_frozen_layer_has_no_backward_pass(model):
    whole = training_flops(model, 100, 1000)
    freeze(model, 1)
    assert training_flops(model, 100, 1000) == pytest.approx(whole * 4 / 6)


def test_a_run_logs_its_speed_but_keeps_no_times(make_config):
    logged = []

    class Listen(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            logged.append(dict(logs))
    result = train(make_config(max_steps=4, logging_steps=2), callbacks=[Listen()])
    losses = [log for log in logged if "loss" in log]
    assert len(losses) == 2
    for log in losses:
        assert log["tokens_per_second"] > 0 and log["padding_share"] == 0 and log["mfu"] > 0
    kept = json.loads((result.model_dir / "trainer_state.json").read_text("utf-8"))["log_history"]
    assert all("mfu" not in log and "tokens_per_second" not in log for log in kept)
    assert any("padding_share" in log for log in kept)
