"""Fine-tune DistilBERT to sort arXiv papers into categories, the same for everyone.

The modules here are the way from a CSV to a model, in the order in which data flows: config, files,
fields, workers, rows, duplicates, papers, splits, text, dataset, baselines, model, batching,
packing, optimizer, checkpoints, stopping, metrics, device, throughput, trainer, training; then
manifest, tables, pictures and prediction, which everything else stands on. They know nothing of the
packages beside them: data keeps and checks versions of the papers, judging tells how good a model
is and which of two is better, experiments tracks and repeats runs and searches settings, predicting
labels files and watches whether papers change, and web is the service and its page.
"""


class InputError(ValueError):
    """A user's mistake: one sentence with what, where, found, allowed and remedy (exit code 2)."""
