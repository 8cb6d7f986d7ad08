"""Serve a model: a page at /, an API beside it.

    python scripts/serve.py models/production
    python scripts/serve.py models/quickstart --port 8080 --workers 2 --log logs/predictions.jsonl

Where the environment has NEJ_TOKEN, predictions need it as a bearer token. SIGHUP, or another model
at the place (a link that was moved, a directory that was replaced), takes that model into use
without a request lost. SIGTERM and Ctrl-C answer what was taken, and end.
"""

import argparse
import os
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Serve until told to stop; return the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model directory, or a link to one")
    parser.add_argument("--host", default="127.0.0.1",
                        help="address to listen at; 0.0.0.0 for other machines (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="8000; 0 takes a free one")
    parser.add_argument("--workers", type=int, default=1, help="processes, each with the model (1)")
    parser.add_argument("--backend", choices=("torch", "openvino"),
                        help="what computes; by default the fastest that there is")
    parser.add_argument("--wanted_accuracy", type=float, default=0.9,
                        help="abstain where fewer answers would be right (0.9); 0 never abstains")
    parser.add_argument("--queue_papers", type=int, default=256,
                        help="papers that may wait, per process; more get 429 (256)")
    parser.add_argument("--deadline_seconds", type=float, default=10.0,
                        help="a request that took longer gets 503 (10)")
    parser.add_argument("--log", type=Path, metavar="FILE", help="log predictions there, not texts")
    parser.add_argument("--log_texts", action="store_true", help="log titles and summaries, too")
    parser.add_argument("--log_megabytes", type=int, default=100,
                        help="most that the log takes on disk (100)")
    parser.add_argument("--cors_origin", action="append", default=[], metavar="URL",
                        help="a site whose pages may ask the API")
    options = vars(parser.parse_args(arguments))
    from nej.web.serving import TOKEN, Settings, serve
    options["cors_origins"] = tuple(options.pop("cors_origin"))
    options["wanted_accuracy"] = options["wanted_accuracy"] or None
    return serve(Settings(**options, token=os.environ.get(TOKEN)))


if __name__ == "__main__":  # a worker process imports this file, and finds no _run
    from _run import Parser, run
    run(main)
