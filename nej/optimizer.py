"""What learns how fast: a learning rate for each layer, and Muon for the layers' matrices."""

import re

from torch.optim import AdamW, Muon, Optimizer
from transformers import DistilBertForSequenceClassification

from nej import InputError


class MuonAdamW(Optimizer):
    """Muon (Jordan et al., 2024) for matrices, AdamW for everything else, as one optimizer.

    Muon orthogonalizes the momentum of a matrix before it takes the step. Its steps are scaled to
    the size of AdamW's (Liu et al., 2025, Muon is Scalable for LLM Training, equation 4), so that
    both go by the same learning rate and weight decay.

    Args:
        matrices: parameter groups of two dimensions, no embeddings and no classifier.
        others: parameter groups of the rest.
    """

    def __init__(self, matrices: list[dict], others: list[dict]):
        self.muon = Muon(matrices, adjust_lr_fn="match_rms_adamw")
        self.adamw = AdamW(others, fused=True)
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let both work on this optimizer's groups and state, which are what is saved."""
        count = len(self.muon.param_groups)
        self.muon.state = self.adamw.state = self.state
        self.muon.param_groups = self.param_groups[:count]
        self.adamw.param_groups = self.param_groups[count:]

    def load_state_dict(self, state_dict: dict) -> None:
        """Take over what `state_dict` returned."""
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure
        """Take a step with each of the two."""
        self.muon.step()
        self.adamw.step()


def make_optimizer(model: DistilBertForSequenceClassification, *, muon: bool, decayed: list[str],
                   lr: float, weight_decay: float, layer_decay: float) -> Optimizer:
    """Return an AdamW or a MuonAdamW for what is trained of the model.

    A layer learns at `layer_decay` times the rate of the one above it, the embeddings at so much
    of the first layer's, the head at `lr` (Clark et al., 2020, ELECTRA, appendix A).

    Args:
        decayed: the names of the parameters that weight decay is for.

    Raises:
        InputError: Muon is wanted, and every layer is frozen.
    """
    top = model.config.n_layers + 1
    groups: dict[tuple[bool, bool, float], list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            layer = re.search(r"\.layer\.(\d+)\.", name)
            depth = int(layer[1]) + 1 if layer else 0 if ".embeddings." in name else top
            for_muon = muon and layer is not None and parameter.ndim == 2
            key = for_muon, for_muon or name in decayed, layer_decay ** (top - depth)
            groups.setdefault(key, []).append(parameter)
    matrices, others = ([
        {"params": parameters, "lr": lr * share, "weight_decay": weight_decay * decays}
        for (for_muon, decays, share), parameters in groups.items() if for_muon == wanted]
        for wanted in (True, False))
    if not muon:
        return AdamW(others, fused=True)
    if not matrices:
        raise InputError("optimizer: 'muon' trains the matrices of layers, and frozen_layers "
                         "leaves none; lower it, or use 'adamw'")
    return MuonAdamW(matrices, others)
