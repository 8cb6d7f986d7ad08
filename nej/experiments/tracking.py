"""Weights & Biases: a run beside the training, online where it can be, else offline.

Training knows nothing of it and does not depend on it: whatever goes wrong here costs one line.
"""

import json
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial, wraps
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import rewrite_logs

from nej.checkpoints import RECORD
from nej.config import Config
from nej.experiments.tracked_model import log_data, log_judgement, log_model
from nej.model import reachable

logger = logging.getLogger(__name__)

# W&B's client says what goes wrong and no more, and does not wait forever for a server that is
# gone; a variable of the same name, WANDB_INIT_TIMEOUT for one, goes over it
CLIENT: dict[str, Any] = {"show_info": False, "init_timeout": 30.0, "finish_timeout": 120.0,
                          "finish_timeout_raises": True}


def survives(method: Callable[..., None]) -> Callable[..., None]:
    """Let a method of Tracker end the tracking, and nothing else, when it raises."""
    @wraps(method)
    def surviving(self: "Tracker", *args, **kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # of any kind: a client, its process, a disk, a network
            self.fail(error)
    return surviving


class Tracker(TrainerCallback):
    """Writes a training into a W&B run, each optimizer step once.

    A run that was stopped goes on as the same run: its id lies with the checkpoints. What W&B has
    not got of the steps before the checkpoint is sent again from there; what it has got of those
    after it is not sent twice.
    """

    def __init__(self, config: Config, origin: dict[str, Any]):
        """Take the settings, and what manifest.origin says of code and data."""
        self.config, self.origin = config, origin
        self.run: Any = None  # wandb's, while it works
        self.started = False
        self.first_step = 0  # W&B has those before it
        self.step = 0  # what was logged last, and is not sent yet
        self.row: dict[str, Any] = {}

    # Trainer's events; only the main process has a run

    @survives
    def on_init_end(self, args, state, control, **kwargs):
        """Remember which run this is."""
        if state.is_world_process_zero:
            self.name = args.run_name
            self.id = json.loads((Path(args.output_dir) / RECORD.name).read_text("utf-8"))["id"]

    @survives
    def on_train_begin(self, args, state, control, **kwargs):
        """Start the run, or go on with it."""
        if state.is_world_process_zero:
            self._start(state.log_history)

    @survives
    def on_log(self, args, state, control, logs, **kwargs):
        """Keep what is logged for the row of its step."""
        self._add(state.global_step, logs)

    @survives
    def on_step_begin(self, args, state, control, **kwargs):
        """Send the row of the step before: its loss and its validation are together."""
        self._send()

    @survives
    def finish(self, model_dir: Path) -> None:
        """Add what the model came to and close the run; for the main process."""
        state = json.loads((model_dir / "trainer_state.json").read_text("utf-8"))
        if not self.started:  # it had been killed after its last step
            self._start(state["log_history"])
        self._send()
        if self.run is not None:
            log_judgement(self.run, model_dir, step=state["global_step"] + 1)
            self._attach("model", partial(log_model, self.run, model_dir))
            self.run.finish()
            self.run = None

    def fail(self, error: Exception) -> None:
        """Say in one line that the tracking is over, and where the rest of it is."""
        rest = "" if self.run is None else f"; send what it lacks with: {_sync_command(self.run)}"
        logger.warning("W&B failed (%s); all else goes on%s", _reason(error), rest)
        self.run = None
        with suppress(Exception, SystemExit):
            import wandb
            from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError
            if isinstance(error, (ConnectionError, HandleAbandonedError, MailboxClosedError)):
                wandb.teardown()  # its process died, and it would complain at exit

    def _start(self, history: Sequence[dict[str, Any]]) -> None:
        self.started = True
        self.run = self._open(resumed=bool(history))
        if self.run is None:
            return
        self.first_step = self.run.starting_step
        for log in history:
            self._add(log["step"], log)
        self._attach("data", partial(log_data, self.run, self.origin))

    def _attach(self, what: str, log: Callable[[], None]) -> None:
        """Log an artifact; the client asks the server about it, which may fail for itself."""
        try:
            log()
        except Exception as error:
            logger.warning("W&B takes no artifact of the %s (%s)", what, _reason(error))

    def _open(self, *, resumed: bool) -> Any:
        """Return the run, None where W&B is disabled; say in one line where it can be seen."""
        import wandb
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # the client's own metrics
        given = {name: value for name, value in CLIENT.items()
                 if f"WANDB_{name.upper()}" not in os.environ}
        settings = wandb.setup(wandb.Settings(**given)).settings  # of variables and files too
        if settings.mode == "disabled":
            return None
        if settings.sweep_id:  # its trials are the agent's to name
            ours: dict[str, Any] = {"name": self.config.run_name}
        else:  # W&B's variables go over ours
            ours = {"id": settings.run_id or self.id, "project": settings.project or "nej",
                    "name": self.config.run_name or settings.run_name or self.name}
        silent = wandb.Settings(silent=True)  # no page at the end
        ours["config"] = asdict(self.config) | {key: self.origin[key] for key in ("git", "data")}
        reason = _why_offline(settings)
        if reason is None:
            try:
                run = wandb.init(**ours, resume="allow" if resumed else None, settings=silent)
                _supersede(run)
                logger.info("W&B: %s", run.url)
                return run
            except Exception as error:
                reason = _reason(error)
                wandb.teardown()  # a run that is half open would be in the way
                wandb.setup(wandb.Settings(**given))
        run = wandb.init(**ours, mode="offline", settings=silent)
        _supersede(run)
        logger.info("W&B is offline (%s); send the run later with: %s", reason, _sync_command(run))
        return run

    def _add(self, step: int, logs: dict[str, Any]) -> None:
        if self.run is None or step < self.first_step or "train_runtime" in logs:
            return
        if step != self.step:
            self._send()
        self.step = step
        self.row |= {key: value for key, value in logs.items() if key != "step"}

    def _send(self) -> None:
        if self.row and self.run is not None:
            row = rewrite_logs(self.row) | {"train/global_step": self.step}
            self.row = {}
            self.run.log(row, step=self.step, commit=True)


def _why_offline(settings: Any) -> str | None:
    """Return why W&B cannot be online, None if it can."""
    import wandb
    if settings.mode in ("offline", "dryrun"):
        return "as WANDB_MODE says"
    if not reachable(settings.base_url):  # the client would try for a quarter of a minute
        return f"no way to {settings.base_url}"
    try:
        if not wandb.login(prompt=False):
            return "no API key; `wandb login` sets one"
    except Exception as error:  # a wrong key, a server that is ill
        return _reason(error)
    return None


def _supersede(run: Any) -> None:
    """Mark what an earlier part of the run wrote offline as sent: this part begins with all of it.

    Client and server cannot append one offline part to another (wandb issue 3841).
    """
    folder = Path(run.settings.wandb_dir)
    for file in folder.glob(f"offline-run-*-{run.id}/run-{run.id}.wandb"):
        if file.parent != Path(run.settings.sync_dir):
            file.with_name(f"{file.name}.synced").touch()


def _sync_command(run: Any) -> str:
    online = "" if run.offline else "--include-online "
    return f"wandb sync {online}{os.path.relpath(run.settings.sync_dir)}"


def _reason(error: Exception) -> str:
    """Return an error in one line: pydantic's has which setting and why in its second and third."""
    lines = [line.strip() for line in str(error).strip().splitlines()[:3]]
    # what is after it has the value, which may be a key
    return " ".join(lines).partition(" [type=")[0][:240] or type(error).__name__
