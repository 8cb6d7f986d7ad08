"""TF-IDF + LinearSVC: what a model is measured against, and what it may learn from."""

import json
import logging
import time
from pathlib import Path

import datasets
import numpy as np
from scipy.sparse import csr_matrix
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.svm import LinearSVC
from sklearn.utils.parallel import Parallel, delayed

from nej import InputError
from nej.files import replacing, write_json
from nej.workers import cores

logger = logging.getLogger(__name__)

SVC_COSTS = (0.1, 0.3, 1.0)  # LinearSVC's C, chosen on the validation papers
TEACHER_COST = 0.3
FOLDS = 5
FEW_PAPERS = 10_000  # are fitted before another process has started


def baseline_predictions(dataset: datasets.DatasetDict, kept: Path) -> dict[str, list[int]]:
    """Return each baseline's classes for the test papers; fitted once, then in the file `kept`.

    Baselines: the majority class, and TF-IDF (1-2 grams) + LinearSVC.
    """
    if kept.exists():
        return json.loads(kept.read_text("utf-8"))
    start = time.perf_counter()
    logger.info("fitting the baselines on %d papers, once", len(dataset["train"]))
    texts = {name: split["text"][:] for name, split in dataset.items()}
    labels = {name: np.asarray(split["label"][:]) for name, split in dataset.items()}
    majority = DummyClassifier(strategy="most_frequent").fit(texts["train"], labels["train"])
    vectorizer = _vectorizer()
    train = vectorizer.fit_transform(texts["train"])
    others = [vectorizer.transform(texts[name]) for name in ("validation", "test")]
    found = Parallel(_processes(len(SVC_COSTS), len(labels["train"])))(
        delayed(_fit_and_predict)(cost, train, labels["train"], others) for cost in SVC_COSTS)
    scores = [f1_score(labels["validation"], validation, average="macro")
              for validation, _ in found]
    best = int(np.argmax(scores))
    predictions = {
        "majority class": majority.predict(texts["test"]).tolist(),
        "TF-IDF + LinearSVC": found[best][1].tolist()}
    logger.info("baselines fitted in %.0f s (LinearSVC C=%g, chosen on the validation papers)",
                time.perf_counter() - start, SVC_COSTS[best])
    write_json(kept, predictions)
    return predictions


def soft_labels(training_papers: datasets.Dataset, folder: Path) -> np.ndarray:
    """Return TF-IDF + LinearSVC's class probabilities for the training papers, out of fold.

    No paper's own label has part in its probabilities: five LinearSVCs judge the fifth of the
    papers that each has not seen, and a logistic regression on those scores makes them
    probabilities (Platt, 1999, with one score per class). Fitted once, then kept in `folder`.

    Returns:
        float32 (papers, classes); rows sum to 1.

    Raises:
        InputError: a class has a single training paper.
    """
    kept = folder / "soft_labels.npy"
    if not kept.exists():
        start = time.perf_counter()
        logger.info("fitting TF-IDF + LinearSVC for soft labels")
        labels = np.asarray(training_papers["label"][:])
        names = training_papers.features["label"].names
        if np.bincount(labels, minlength=len(names)).min() < 2:
            rare = names[np.bincount(labels, minlength=len(names)).argmin()]
            raise InputError(f"distillation_weight: {rare!r} has 1 training paper, and soft labels "
                             "take 2 at least; raise min_papers or max_train_papers, or set "
                             "distillation_weight to 0")
        scores = cross_val_predict(
            LinearSVC(C=TEACHER_COST, random_state=0),
            _vectorizer().fit_transform(training_papers["text"][:]), labels,
            cv=StratifiedKFold(FOLDS, shuffle=True, random_state=0), method="decision_function",
            n_jobs=_processes(FOLDS, len(labels)))
        scores = scores.reshape(len(labels), -1)  # two classes have one score
        probabilities = LogisticRegression(max_iter=1000).fit(scores, labels).predict_proba(scores)
        with replacing(kept) as aside, open(aside, "wb") as handle:
            np.save(handle, probabilities.astype(np.float32))
        logger.info("soft labels fitted in %.0f s: %.3f of the training papers right",
                    time.perf_counter() - start, np.mean(probabilities.argmax(1) == labels))
    return np.load(kept)


def _fit_and_predict(cost: float, train: csr_matrix, labels: np.ndarray, others: list[csr_matrix]
                     ) -> list[np.ndarray]:
    """Return the classes of each of `others`; the weights of all classes stay in this process."""
    svc = LinearSVC(C=cost, random_state=0).fit(train, labels)
    return [svc.predict(papers) for papers in others]


def _processes(most: int, papers: int) -> int:
    return 1 if papers < FEW_PAPERS else min(most, cores())


def _vectorizer() -> TfidfVectorizer:
    return TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, dtype=np.float32)
