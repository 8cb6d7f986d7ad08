"""Muon for the matrices of the layers, AdamW for everything else, as one optimizer."""

import torch
from torch.optim import AdamW, Muon, Optimizer
from transformers import DistilBertForSequenceClassification

from nej import InputError


class MuonAdamW(Optimizer):
    """Muon (Jordan et al., 2024) for `matrices`, AdamW for the others.

    Muon orthogonalizes the momentum of a matrix before it takes the step. Its steps are scaled to
    the size of AdamW's (Liu et al., 2025, Muon is Scalable for LLM Training, equation 4), so that
    both go by the same learning rate and weight decay.

    Args:
        matrices: parameters of two dimensions, no embeddings and no classifier.
        decayed, others: the rest, with and without weight decay.
    """

    def __init__(self, matrices: list[torch.nn.Parameter], decayed: list[torch.nn.Parameter],
                 others: list[torch.nn.Parameter], *, lr: float, weight_decay: float):
        self.muon = Muon(
            matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self.adamw = AdamW(
            [{"params": decayed}, {"params": others, "weight_decay": 0.0}],
            lr=lr, weight_decay=weight_decay, fused=True)
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let both work on this optimizer's groups and state, which are what is saved."""
        self.muon.state = self.adamw.state = self.state
        self.muon.param_groups = self.param_groups[:1]
        self.adamw.param_groups = self.param_groups[1:]

    def load_state_dict(self, state_dict: dict) -> None:
        """Take over what `state_dict` returned."""
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: None = None) -> None:
        """Take a step with each of the two."""
        self.muon.step()
        self.adamw.step()


def muon_for(model: DistilBertForSequenceClassification, *, decayed: list[str], lr: float,
             weight_decay: float) -> MuonAdamW:
    """Return a MuonAdamW for what is trained of the model.

    Args:
        decayed: the names of the parameters that weight decay is for.

    Raises:
        InputError: every layer is frozen.
    """
    kinds: dict[str, list] = {"matrices": [], "decayed": [], "others": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            in_layer = ".layer." in name and parameter.ndim == 2
            kind = "matrices" if in_layer else "decayed" if name in decayed else "others"
            kinds[kind].append(parameter)
    if not kinds["matrices"]:
        raise InputError("optimizer: 'muon' trains the matrices of layers, and frozen_layers "
                         "leaves none; lower it, or use 'adamw'")
    return MuonAdamW(**kinds, lr=lr, weight_decay=weight_decay)
