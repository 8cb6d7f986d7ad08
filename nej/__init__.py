"""Fine-tune DistilBERT to sort arXiv papers into categories, the same for everyone.

The modules, in the order in which data flows: config, files, rows, duplicates, papers, splits,
dataset, baselines, model, batching, packing, checkpoints, metrics, device, training; then, from a
model directory: evaluation, embeddings, figures (with data_figures and judgement_figures),
manifest, reproduction, tracking. gate checks the data; sources, additions, feed and difference keep
its versions.
"""


class InputError(ValueError):
    """A user's mistake: one sentence with what, where, found, allowed and remedy (exit code 2)."""
