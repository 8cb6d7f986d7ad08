"""A trained model at work on files, and whether the papers are still those that it was judged on.

export makes a faster copy, backends chooses what computes. windows, labels and bulk label a file of
any size. prediction_log keeps what was predicted, unknown_words counts what the vocabulary does not
know, recent gathers papers, drift compares them with the test papers, and drift_figures draws it.
"""
