"""Papers laid end to end give what padded ones give, backwards too."""

from functools import partial

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from nej.batching import IGNORED, collate
from nej.config import Config
from nej.device import prepare_device
from nej.packing import (
    TILE, PaperRows, _dropout, _first_attention, _kept, _PaperAttention, can_pack, filler, pack,
    packed_forward, take_packed,
)
from nej.training import train


@pytest.fixture
def model() -> DistilBertForSequenceClassification:
    """Return a small random model in float64, without dropout."""
    torch.manual_seed(3)
    return DistilBertForSequenceClassification(DistilBertConfig(
        vocab_size=60, max_position_embeddings=40, dim=24, n_layers=3, n_heads=4, hidden_dim=48,
        num_labels=5, dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0,
        initializer_range=0.3)).double()


def papers_of(*lengths: int) -> list[dict]:
    draw = torch.Generator().manual_seed(sum(lengths))
    return [{"input_ids": torch.randint(1, 60, (length,), generator=draw).tolist(),
             "label": length % 5} for length in lengths]


@pytest.mark.parametrize("lengths", [
    (1,), (40,), (7, 7, 7), (40, 1, 13, 2), (3, 39, 40, 1, 1), tuple(range(1, TILE + 5))])
def test_logits_and_gradients_are_those_of_padded_papers(model, lengths):
    papers = papers_of(*lengths)
    padded, packed = collate(papers, pad_token_id=0), pack(papers, pad_token_id=0)
    labels = padded.pop("labels")
    assert packed.pop("labels").tolist() == labels.tolist()
    found, gradients = {}, {}
    for name, logits in (("padded", model(**padded).logits),
                         ("packed", packed_forward(model, **packed).logits)):
        model.zero_grad()
        cross_entropy(logits, labels).backward()
        found[name] = logits.detach()
        gradients[name] = {key: value.grad for key, value in model.named_parameters()}
    assert (found["padded"] - found["packed"]).abs().max() < 1e-12
    for key, gradient in gradients["padded"].items():
        assert (gradient - gradients["packed"][key]).abs().max() < 1e-12, key


def test_papers_do_not_see_each_other(model):
    alone = [packed_forward(model, **without_labels([paper])).logits for paper in papers_of(9, 4)]
    both = packed_forward(model, **without_labels(papers_of(9, 4))).logits
    assert (torch.cat(alone) - both).abs().max() < 1e-12


def without_labels(papers: list[dict]) -> dict[str, torch.Tensor]:
    batch = pack(papers, pad_token_id=0)
    del batch["labels"]
    return batch


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_attention_has_the_right_gradient(rate):
    def attend(parts):
        torch.manual_seed(5)  # the same mask every time
        return _PaperAttention.apply(parts, [4, 3], rate)
    parts = torch.randn(7, 3, 2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(attend, (parts,))


def test_attention_dropout_keeps_the_mean_and_drops_the_given_share():
    torch.manual_seed(0)
    parts = torch.ones(400, 3, 2, 4)  # values: so that the result is the sum of the kept weights
    parts[:, :2].normal_()
    whole = _PaperAttention.apply(parts, [400], 0.0)
    parts[:, 1] = 1  # keys: so that all weights are one
    dropped = _PaperAttention.apply(parts, [400], 0.3)
    assert whole.sub(1).abs().max() < 1e-5
    assert abs(dropped.mean() - 1) < 0.01
    # the variance of a mean of 400 weights kept with probability 0.7 and divided by it
    assert dropped[..., 0].var().item() == pytest.approx(0.3 / 0.7 / 400, rel=0.2)


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_the_last_layers_attention_is_the_usual_one(model, rate):
    layer = model.train().distilbert.transformer.layer[-1]
    attention = layer.attention
    attention.dropout.p = rate
    for part in (attention.q_lin, attention.k_lin, attention.v_lin):
        torch.nn.init.normal_(part.bias)
    sizes, starts = [5, 1, 9], [0, 5, 6]
    rows = PaperRows(sizes, torch.tensor([0, 5, 6, 15], dtype=torch.int32), 9)
    hidden = torch.randn(32, 24, dtype=torch.float64)
    torch.manual_seed(5)
    found = _first_attention(layer, hidden[starts], hidden, rows)
    torch.manual_seed(5)
    masks = _kept(torch.empty(3, 4, 4 * TILE, dtype=torch.float64), rate) / (1 - rate)
    for size, start, mask, mixed in zip(sizes, starts, masks, found):
        paper = hidden[start:start + size]
        query, key, value = (part(paper).view(size, 4, 6).transpose(0, 1) for part in (
            attention.q_lin, attention.k_lin, attention.v_lin))
        weights = (query[:, :1] @ key.transpose(1, 2) / 6 ** 0.5).softmax(-1)
        expected = (weights * mask[:, None, :size]) @ value
        assert (expected[:, 0] - mixed).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_each_place_by_itself_and_the_mean(rate, dtype):
    torch.manual_seed(3)
    rows = torch.ones(1001, 303, dtype=dtype, requires_grad=True)
    dropped = _dropout(rows, rate, True)
    kept = dropped.detach() != 0
    count = kept.numel()
    assert set(dropped.detach().unique().tolist()) == {
        0.0, torch.tensor(1 / (1 - rate)).to(dtype).item()}
    error = 5 * (rate * (1 - rate) / count) ** 0.5  # five standard errors of a share
    assert abs(kept.float().mean().item() - (1 - rate)) < error
    flat = kept.flatten().float() - (1 - rate)
    for distance in (1, 2, 3, 4, 303):  # neighbours come from one number of 64 bits
        assert abs((flat[distance:] * flat[:-distance]).mean().item()) < error
    dropped.sum().backward()
    assert torch.equal(rows.grad, dropped.detach())
    torch.manual_seed(3)
    assert torch.equal(_dropout(rows, rate, True), dropped)
    assert _dropout(rows, rate, False) is rows


def test_dropout_acts_in_training_only(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    batch = without_labels(papers_of(12, 8))
    model.eval()
    assert torch.equal(*(packed_forward(model, **batch).logits for _ in range(2)))
    padded = collate(papers_of(12, 8), pad_token_id=0)
    del padded["labels"]
    difference = model(**padded).logits - packed_forward(model, **batch).logits
    assert difference.abs().max() < 1e-12
    model.train()
    assert not torch.equal(*(packed_forward(model, **batch).logits for _ in range(2)))


def test_frozen_embeddings_and_bfloat16_pass(model):
    model.float().distilbert.embeddings.requires_grad_(False)
    batch = without_labels(papers_of(12, 8))
    exact = packed_forward(model, **batch).logits
    with torch.autocast("cpu", torch.bfloat16):
        logits = packed_forward(model, **batch).logits
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - exact).abs().max() < 0.1 * exact.abs().max()
    logits.float().sum().backward()
    assert model.distilbert.embeddings.word_embeddings.weight.grad is None
    assert model.distilbert.transformer.layer[0].attention.k_lin.weight.grad.abs().sum() > 0


def test_no_papers_are_one_that_counts_for_nothing(model):
    batch = pack([], pad_token_id=0)
    labels = batch.pop("labels")
    assert labels.tolist() == [IGNORED] and batch["longest"] == 1
    assert batch["lengths"].tolist() == [1] and batch["input_ids"].tolist() == [0]
    logits = packed_forward(model, **batch).logits
    cross_entropy(logits, labels, reduction="sum").backward()
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)


def test_few_rows_fill_up_to_few_shapes():
    shapes = [tokens + filler(tokens, "cpu") for tokens in range(1, 16_385)]
    assert all(shape % TILE == 0 for shape in shapes)
    assert all(0 <= shape - tokens < max(TILE, tokens / 16)
               for tokens, shape in enumerate(shapes, 1))
    assert len({shape for shape in shapes if 4096 < shape <= 8192}) == 16
    assert filler(1000, "cuda") == 0


class Products(TorchDispatchMode):
    """Note the shapes of matrix products, forwards and backwards."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            self.shapes.add((str(function), *(tuple(part.shape) for part in args)))
        return function(*args, **kwargs or {})


def test_papers_of_other_lengths_meet_the_same_shapes(model):
    met = []
    for lengths in ((33, 20, 7), (40, 22, 2), (35, 21, 5)):
        with Products() as products:
            packed_forward(model, **without_labels(papers_of(*lengths))).logits.sum().backward()
        met.append(products.shapes)
    assert met[0] == met[1] == met[2] and len(met[0]) > 20


def test_pack_gives_whole_numbers_of_64_bits():
    batch = pack(papers_of(3, 2), pad_token_id=0)
    assert batch.pop("longest") == 3
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    assert batch["lengths"].tolist() == [3, 2] and len(batch["input_ids"]) == 5


def test_a_model_that_takes_packed_papers_is_saved_as_the_usual_one(model, tmp_path):
    take_packed(model)
    model.eval()
    expected = model(**without_labels(papers_of(6, 5))).logits
    model.save_pretrained(tmp_path)
    usual = DistilBertForSequenceClassification.from_pretrained(
        tmp_path, dtype=torch.float64).eval()
    assert usual.config.architectures == ["DistilBertForSequenceClassification"]
    padded = collate(papers_of(6, 5), pad_token_id=0)
    del padded["labels"]
    assert (usual(**padded).logits - expected).abs().max() < 1e-12


def test_a_run_comes_to_the_same_weights_padded_and_packed(make_config, tmp_path):
    weights = []
    for name in (None, "eager"):
        config = make_config(attn_implementation=name, dropout=0.0, max_steps=8,
                             output_dir=str(tmp_path / str(name)))
        weights.append(load_file(train(config).model_dir / "model.safetensors"))
    for key, value in weights[0].items():
        assert (value - weights[1][key]).abs().max() < 1e-5, key


@pytest.fixture
def gpu():
    """A GPU that is set up as for a training."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    PartialState._reset_state()  # an earlier test may have taken the CPU
    assert prepare_device(Config()) == "cuda"
    yield "cuda"
    PartialState._reset_state()
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("packed", [True, False])
def test_a_gpu_comes_near_the_exact_result_and_repeats_itself(gpu, packed):
    torch.manual_seed(0)
    model = DistilBertForSequenceClassification._from_config(DistilBertConfig(
        vocab_size=60, dim=768, n_layers=3, n_heads=12, hidden_dim=128, num_labels=5,
        dropout=0.0, attention_dropout=0.1, seq_classif_dropout=0.0),
        attn_implementation="sdpa").to(gpu)
    papers = papers_of(500, 7, 64, 512, 1, 130, 257, 400)
    padded = {name: part.to(gpu) for name, part in collate(papers, pad_token_id=0).items()}
    labels = padded.pop("labels")
    inputs = padded if not packed else {
        name: part.to(gpu) if isinstance(part, torch.Tensor) else part
        for name, part in without_labels(papers).items()}
    forward = partial(packed_forward, model) if packed else model
    model.eval()
    exact = model(**padded).logits
    with torch.autocast(gpu, torch.bfloat16):
        logits = forward(**inputs).logits
    assert (logits - exact).norm() < 0.02 * exact.norm()
    model.train()
    found = []
    for _ in range(6):
        torch.manual_seed(5)
        model.zero_grad()
        with torch.autocast(gpu, torch.bfloat16):
            logits = forward(**inputs).logits
        cross_entropy(logits.float(), labels).backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    for again in found[1:]:
        assert all(torch.equal(*gradients) for gradients in zip(found[0], again))


@pytest.mark.parametrize("device, bf16, expected", [
    ("cpu", True, True), ("cpu", False, True), ("cuda", False, False), ("mps", True, False)])
def test_a_cpu_packs_and_a_gpu_in_bfloat16_only(device, bf16, expected):
    assert can_pack(device, bf16) is expected
