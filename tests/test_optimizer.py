"""Muon and AdamW as one optimizer: what each does by itself, saved and gone on from."""

import io

import pytest
import torch
from torch.optim import AdamW, Muon
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from nej import InputError
from nej.model import freeze
from nej.optimizer import muon_for
from nej.training import train


def make_model() -> DistilBertForSequenceClassification:
    torch.manual_seed(0)
    return DistilBertForSequenceClassification(DistilBertConfig(
        vocab_size=50, max_position_embeddings=16, dim=16, n_layers=2, n_heads=2, hidden_dim=32))


def decayed(model: torch.nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.ndim > 1]


def set_gradients(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_it_does_what_the_two_do_apart():
    one, other = make_model(), make_model()
    for model in (one, other):
        freeze(model, 1)
    whole = muon_for(one, decayed=decayed(one), lr=0.01, weight_decay=0.1)
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
    whole, first = (muon_for(m, decayed=decayed(m), lr=0.01, weight_decay=0.1) for m in models)
    for step in range(2):
        for model, optimizer in zip(models, (whole, first)):
            set_gradients(model, step)
            optimizer.step()
    saved = io.BytesIO()
    torch.save(first.state_dict(), saved)
    saved.seek(0)
    again = muon_for(models[1], decayed=decayed(models[1]), lr=0.01, weight_decay=0.1)
    again.load_state_dict(torch.load(saved))
    for model, optimizer in zip(models, (whole, again)):
        set_gradients(model, 2)
        optimizer.step()
    for name, weights in models[0].state_dict().items():
        assert torch.equal(weights, models[1].state_dict()[name]), name


def test_a_run_with_nothing_for_muon_says_so(make_config):
    with pytest.raises(InputError, match="optimizer: 'muon' .* frozen_layers leaves none"):
        train(make_config(optimizer="muon", frozen_layers=2, max_steps=1))
