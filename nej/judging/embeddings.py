"""A model's embeddings of its test papers, laid out in the plane."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nej import InputError
from nej.files import CONFIG_FILE

EMBEDDINGS_FILE = "embeddings.npy"  # in a model directory: float16 (papers, width)
MOST_PAPERS = 20_000
PERPLEXITY = 30
FEW = 2_000  # papers that threads, which wait for each other at every step, do not speed up
COMPONENTS = 50  # neighbours are sought among this many principal components


@dataclass(frozen=True)
class PaperEmbeddings:
    """Embeddings of a sample of a model's test papers, and their classes."""

    embeddings: np.ndarray  # float32 (papers, width)
    labels: list[str]  # the true class of each
    papers: int  # how many test papers there are
    seed: int  # of the sample, and for the layout


def load_embeddings(model_dir: Path, *, most: int = MOST_PAPERS) -> PaperEmbeddings:
    """Return the embeddings of at most `most` test papers, drawn with the seed of the training.

    They are read from embeddings.npy, which judging the model writes beside predictions.csv, or
    computed where it is absent.

    Raises:
        InputError: no model there, no data to compute them from, or files that do not belong
            together.
    """
    try:
        stored = np.load(model_dir / EMBEDDINGS_FILE, mmap_mode="r")
    except FileNotFoundError:
        return _compute(model_dir, most)
    except (ValueError, EOFError) as error:
        raise InputError(f"{model_dir / EMBEDDINGS_FILE} cannot be read ({error}); write it again "
                         f"with `python scripts/evaluate.py {model_dir}`") from None
    with open(model_dir / "predictions.csv", encoding="utf-8", newline="") as file:
        labels = [row["actual"] for row in csv.DictReader(file)]
    if len(labels) != len(stored):
        raise InputError(
            f"{model_dir}: {EMBEDDINGS_FILE} has {len(stored):,} papers and predictions.csv "
            f"{len(labels):,}; write both again with `python scripts/evaluate.py {model_dir}`")
    seed = json.loads((model_dir / CONFIG_FILE).read_text("utf-8"))["seed"]
    rows = sample(len(labels), most, seed=seed)
    return PaperEmbeddings(stored[rows].astype(np.float32), [labels[row] for row in rows],
                           len(labels), seed)


def _compute(model_dir: Path, most: int) -> PaperEmbeddings:
    from nej.judging.lineage import own_dataset
    from nej.prediction import Classifier
    classifier = Classifier.load(model_dir)
    papers = own_dataset(model_dir)["test"]
    rows = sample(len(papers), most, seed=classifier.config.seed)
    chosen = papers.select(rows)
    outputs = classifier.run(chosen, description="Embed the test papers")
    labels = [classifier.names[label] for label in chosen["label"][:]]
    return PaperEmbeddings(outputs.embeddings, labels, len(papers), classifier.config.seed)


def sample(papers: int, most: int, *, seed: int) -> np.ndarray:
    """Return the rows of at most `most` of the papers, in their order, int64."""
    if papers <= most:
        return np.arange(papers)
    return np.sort(np.random.default_rng(seed).choice(papers, most, replace=False))


def project(embeddings: np.ndarray, *, seed: int) -> np.ndarray:
    """Lay papers out in the plane so that neighbours stay neighbours; float64 (papers, 2).

    t-SNE (van der Maaten and Hinton, 2008) from the first principal components on, with gradients
    by Barnes and Hut's tree (van der Maaten, 2014) or, from 10,000 papers on, by interpolation
    (Linderman et al., 2019). The same seed on the same machine gives the same layout.

    Args:
        embeddings: float (papers, width).
        seed: of the search for neighbours.
    """
    import openTSNE
    from sklearn.decomposition import PCA
    embeddings = np.asarray(embeddings, np.float32)
    papers, width = embeddings.shape
    # fewer have no neighbourhoods, and equal ones no directions, to lay out
    if papers < 5 or not np.ptp(embeddings, axis=0).any():
        return _spread(embeddings)
    if width > COMPONENTS and papers > COMPONENTS:
        embeddings = PCA(COMPONENTS, svd_solver="covariance_eigh").fit_transform(embeddings)
    steps = {"early_exaggeration_iter": 250, "n_iter": 500}
    with tqdm(total=sum(steps.values()), desc="t-SNE", unit="step", disable=None) as bar:
        def advance(*_) -> bool:
            bar.update(25)
            return False  # True would stop it

        return np.array(openTSNE.TSNE(
            perplexity=min(PERPLEXITY, (papers - 1) / 3), random_state=seed,
            n_jobs=1 if papers <= FEW else -1, callbacks=advance,
            callbacks_every_iters=25, **steps).fit(embeddings))


def _spread(embeddings: np.ndarray) -> np.ndarray:
    """Return the first two principal components, zero where there are fewer, (papers, 2)."""
    centred = embeddings - embeddings.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(embeddings), 2))
    points[:, :len(sizes)] = (left * sizes)[:, :2]
    return points
