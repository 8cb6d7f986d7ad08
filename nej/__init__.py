"""Fine-tune DistilBERT to sort arXiv papers into categories, the same for everyone.

The modules, in the order in which data flows: config, files, papers, splits, dataset, model,
batching, checkpoints, metrics, training; then, from a model directory: evaluation, figures,
manifest, tracking.
"""


class InputError(ValueError):
    """A user's mistake: one sentence with what, where, found, allowed and remedy (exit code 2)."""
