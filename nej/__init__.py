"""Fine-tune DistilBERT to sort arXiv papers into categories, the same for everyone.

The modules, in the order in which data flows: config, files, fields, rows, duplicates, papers,
splits, dataset, baselines, model, batching, packing, optimizer, checkpoints, metrics, device,
throughput, training; manifest, reproduction and tracking of a run. From a model directory:
prediction, backends, export; records, windows, labels and bulk label files; then intervals,
calibration, judgement, slices, mistakes, labelled, evaluation, embeddings, figures, tables, report
and card tell how good it is; behaviour, lineage, comparison, scorecard, promotion and runs which is
better, and which is in use; drift, recent and drift_figures whether papers change. search_space,
sweep, trial, search and sweep_report try many settings. gate checks the data; sources, additions,
feed and difference keep its versions. The web service: serving, api, guard, schemas, reference and
page face the network; service, batcher, model_in_use, unknown_words, signals and prediction_log do
the work.
"""


class InputError(ValueError):
    """A user's mistake: one sentence with what, where, found, allowed and remedy (exit code 2)."""
