"""Muon and AdamW as one optimizer: what each does by itself, saved and gone on from."""

import io

import pytest
import torch
from torch.optim import AdamW, Muon
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from nej import InputError
from nej.model import freeze
from nej.optimizer import make_optimizer
from nej.training import train


def make_model() -> DistilBertForSequenceClassification:
    torch.manual_seed(0)
    return DistilBertForSequenceClassification(DistilBertConfig(
        vocab_size=50, max_position_embeddings=16, dim=16, n_layers=2, n_heads=2, hidden_dim=32))


def decayed(model: torch.nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.ndim > 1]


def make(model: torch.nn.Module, **others) -> torch.optim.Optimizer:
    return make_optimizer(model, decayed=decayed(model), lr=0.01, weight_decay=0.1, **{
        "muon": True, "layer_decay": 1.0} | others)


def set_gradients(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_it_does_what_the_two_do_apart():
    one, other = make_model(), make_model()
    for model in (one, other):
        freeze(model, 1)
    whole = make(one)
    named = {n: p for n, p in other.named_parameters() if p.requires_grad}
    matrices = [p for n, p in named.items() if n.startswith("distilbert") and p.ndim == 2]
    assert len(matrices) == 6  # four of attention, two of the feed-forward part
    apart = [
        Muon(matrices, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        AdamW([p for p in named.values() if p.ndim == 1], lr=0.01, weight_decay=0.0),
        AdamW([named["pre_classifier.weight"], named["classifier.weight"]],
              lr=0.01, weight_decay=0.1)]
    for step in range(3):
        for model, optimizers in ((one, [whole]), (other, apart)):
            set_gradients(model, step)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = 0.01 / (step + 1)  # as a scheduler does
                optimizer.step()
    for name, weights in one.state_dict().items():
        torch.testing.assert_close(weights, other.state_dict()[name], atol=1e-6, rtol=1e-5)


def test_saved_and_gone_on_from_it_is_the_same():
    models = [make_model(), make_model()]
    whole, first = (make(m) for m in models)
    for step in range(2):
        for model, optimizer in zip(models, (whole, first)):
            set_gradients(model, step)
            optimizer.step()
    saved = io.BytesIO()
    torch.save(first.state_dict(), saved)
    saved.seek(0)
    again = make(models[1])
    again.load_state_dict(torch.load(saved))
    for model, optimizer in zip(models, (whole, again)):
        set_gradients(model, 2)
        optimizer.step()
    for name, weights in models[0].state_dict().items():
        assert torch.equal(weights, models[1].state_dict()[name]), name


def test_a_run_with_nothing_for_muon_says_so(make_config):
    with pytest.raises(InputError, match="optimizer: 'muon' .* frozen_layers leaves none"):
        train(make_config(optimizer="muon", frozen_layers=2, max_steps=1))


@pytest.mark.parametrize("muon", [False, True])
def test_each_layer_learns_at_a_share_of_the_rate_above(muon):
    model = make_model()
    optimizer = make(model, muon=muon, layer_decay=0.5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: rates[id(p)] for name, p in model.named_parameters()}
    for name, rate in found.items():
        share = (1 if "distilbert" not in name else 1 / 2 if ".layer.1." in name else
                 1 / 4 if ".layer.0." in name else 1 / 8)
        assert rate == 0.01 * share, name
    before = {name: p.clone() for name, p in model.named_parameters()}
    set_gradients(model, 0)
    optimizer.step()
    moved = {name: (p - before[name]).abs().mean().item() for name, p in model.named_parameters()}
    part = "transformer.layer.{}.ffn.lin1.weight"
    low, high = (moved["distilbert." + part.format(layer)] for layer in (0, 1))
    assert high / low == pytest.approx(2, rel=0.2)


def test_weight_decay_is_for_those_that_are_named():
    model = make_model()
    for muon in (False, True):
        optimizer = make(model, muon=muon)
        decays = {id(p): group["weight_decay"] for group in optimizer.param_groups
                  for p in group["params"]}
        assert {name for name, p in model.named_parameters() if decays[id(p)] == 0.1} == set(
            decayed(model))
