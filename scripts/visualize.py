"""Draw what there is to see of a model directory: training, judgement, embeddings.

    python scripts/visualize.py models/quickstart
    python scripts/visualize.py models/quickstart --figure-name tsne --papers 2000

Embeddings are those of the test papers, laid out by t-SNE.
"""

import argparse
from pathlib import Path

from _run import Parser, run


def main(arguments: list[str]) -> int:
    """Draw and say where; return the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model directory")
    parser.add_argument("--output", type=Path, default=Path("reports/figures"),
                        help="the folder for the pictures (reports/figures)")
    parser.add_argument("--figure-name", default="embeddings", metavar="NAME",
                        help="the name of the picture of embeddings (embeddings)")
    parser.add_argument("--papers", type=int, default=20_000,
                        help="test papers in that picture at most, a sample (20000)")
    options = parser.parse_args(arguments)
    name = options.figure_name.removesuffix(".png")
    if not name or Path(name).name != name:
        parser.error(f"--figure-name is {options.figure_name!r}; give a name without folders, "
                     "and the folder as --output")
    if options.papers < 1:
        parser.error(f"--papers is {options.papers}; it has to be at least 1")
    from nej.judging.embeddings import load_embeddings, project
    from nej.judging.figures import draw_model
    from nej.judging.judgement_figures import draw_embeddings
    pictures = draw_model(options.model, options.output)
    print("\n".join(map(str, pictures)), flush=True)
    target = options.output / f"{name}.png"
    if target in pictures:
        parser.error(f"--figure-name is {options.figure_name!r}, and {target} is another picture; "
                     "give another name")
    found = load_embeddings(options.model, most=options.papers)
    shown = len(found.labels)
    of_all = f"{shown:,}" if shown == found.papers else f"{shown:,} of {found.papers:,}"
    draw_embeddings(project(found.embeddings, seed=found.seed), found.labels, target,
                    title=f"t-SNE of the embeddings of {of_all} test papers, {options.model.name}")
    print(target)
    return 0


if __name__ == "__main__":
    run(main)
