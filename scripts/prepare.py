"""Check the papers, and make the data set that training takes: split, labelled, tokenized.

    python scripts/prepare.py --config configs/quickstart.json
    python scripts/prepare.py --config configs/base.json --check_only

Errors stop, warnings are told. Writes data.md with pictures, and rejects.csv with the number of
each row that is left out and the reason, into the config's reports_dir. Then the data set goes into
the cache, and prepared.json says what is in it: papers, classes, and a hash of each split.
"""

import argparse
from pathlib import Path

from _run import Parser, run


def main(arguments: list[str]) -> int:
    """Check, report, prepare; return the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="a JSON file of keys; see configs/")
    parser.add_argument("--check_only", action="store_true", help="check and report, no more")
    options, overrides = parser.parse_known_args(arguments)
    from nej.config import load_config
    config = load_config(options.config, overrides)
    from nej.data.gate import check_papers, write_report
    from nej.dataset import clean_papers, describe, load_dataset
    from nej.files import write_json
    from nej.model import load_tokenizer
    tokenizer = load_tokenizer(config.model_name_or_path)
    reports = Path(config.reports_dir)
    with clean_papers(config) as papers:
        report = check_papers(papers, config, tokenizer)
        write_report(report, papers, reports, max_length=config.max_length)
        print(report.text())
        if not options.check_only:
            write_json(reports / "prepared.json",
                       describe(load_dataset(config, tokenizer, papers=papers)))
    print(f"report: {reports}/data.md, {reports}/rejects.csv")
    return 0


if __name__ == "__main__":
    run(main)
