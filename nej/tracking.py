"""Weights & Biases: online where it can be, else offline, with one line that says so."""

import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from nej.checkpoints import RECORD
from nej.config import Config
from nej.model import reachable

logger = logging.getLogger(__name__)


class TrackingCallback(TrainerCallback):
    """Choose W&B's mode before Trainer starts the run, and add the resolved config to it."""

    def __init__(self, config: Config):
        self.config = config
        self.reason = None
        os.environ.setdefault("WANDB_PROJECT", "nej")
        os.environ.setdefault("WANDB_SILENT", "true")  # it would print a page at start and end
        if "WANDB_MODE" not in os.environ:
            import wandb
            self.reason = _why_offline()
            if self.reason:
                os.environ["WANDB_MODE"] = "offline"
                wandb.teardown()  # or it keeps the mode that it read before

    def on_init_end(self, args, state, control, **kwargs):
        """Start the run, or go on with it: the id lies with the checkpoints."""
        import wandb
        if state.is_world_process_zero:
            record = json.loads((Path(args.output_dir) / RECORD.name).read_text("utf-8"))
            wandb.init(id=os.environ.get("WANDB_RUN_ID", record["id"]), resume="allow",
                       name=args.run_name)

    def on_train_begin(self, args, state, control, **kwargs):
        import wandb
        if wandb.run is None:  # only the main process has a run
            return
        wandb.config.update(dataclasses.asdict(self.config), allow_val_change=True)
        if self.reason:
            folder = os.path.relpath(os.path.dirname(wandb.run.dir))
            logger.info("W&B is offline (%s); send the run later with: wandb sync %s",
                        self.reason, folder)


def finish_run(metrics: dict[str, Any]) -> None:
    """Write flat test metrics into the summary of the W&B run, if there is one, and close it."""
    import wandb
    if wandb.run is not None:
        wandb.run.summary.update({f"test/{key}": value for key, value in metrics.items()
                                  if isinstance(value, (int, float))})
        wandb.finish()


def _why_offline() -> str | None:
    """Return why W&B cannot be online, None if it can."""
    import wandb
    url = os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url
    if not reachable(url):  # with a key, login would try for a quarter of a minute
        return f"no way to {url}"
    try:
        if not wandb.login(prompt=False):
            return "no API key; `wandb login` sets one"
    except wandb.errors.AuthenticationError as error:
        return str(error).splitlines()[0][:160]
    return None
