"""Weights & Biases and MLflow: they get the numbers, pictures and config of a run, and never hold it up.

Each runs in a thread of its own. What fails there is reported once; metrics.jsonl and TensorBoard have everything.
"""

import functools
import importlib
import json
import queue
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from isnet_jax.errors import UserError, first_line
from isnet_jax.runtime.console import say, warn
from isnet_jax.runtime.files import atomic_write_text, read_json
from isnet_jax.training.sinks import Sink

MAX_PENDING = 10_000  # calls that wait for a slow server; a row each, or a picture
CLOSE_SECONDS, STOP_SECONDS = 30.0, 5.0  # that a run waits for a slow server at its end, and when it is stopped
CONNECT_SECONDS = 60  # of Weights & Biases
PARAMS_AT_ONCE, MAX_KEY, MAX_VALUE = 100, 250, 500  # limits of MLflow's server, characters of a name and of a parameter


class Wandb:
    """A run of a Weights & Biases project.

    Its files are where the package puts them, WANDB_DIR or ./wandb: they hold links that lead out of a workdir.
    """

    def __init__(self, project: str, workdir: Path, config: Mapping[str, Any]):
        wandb = import_tracker("wandb")
        settings = wandb.Settings(silent=True, console="off", init_timeout=CONNECT_SECONDS)
        online = wandb.setup(settings=settings).settings.mode == "online"
        if online and sys.stdin and sys.stdin.isatty() and not wandb.api.api_key:  # it would ask, amid the run's output
            raise UserError("there is no API key; `wandb login` stores one, and WANDB_MODE=offline needs none")
        kept = workdir / "wandb.json"
        run_id = kept_id(kept, project) or keep_id(kept, project, uuid.uuid4().hex[:8])
        self._picture = wandb.Image
        self._run = wandb.init(
            project=project,
            id=run_id,
            resume="allow",
            name=workdir.name,
            config=dict(config),
            settings=settings,
        )
        say(f"Weights & Biases: {self._run.dir if self._run.offline else self._run.url}")

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """As `Sink.scalars`."""
        self._log(step, {name: value for name, value in values.items() if value is not None})

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """As `Sink.picture`."""
        self._log(step, {name: self._picture(pixels)})

    def _log(self, step: int, values: dict[str, Any]) -> None:
        if step >= self._run.step:  # it refuses earlier steps, which a resumed run repeats with the same numbers
            self._run.log(values, step=step)

    def close(self, failed: bool) -> None:
        """As `Sink.close`."""
        self._run.finish(exit_code=int(failed))


class MLflow:
    """A run of an MLflow experiment, on the server or in the store of MLFLOW_TRACKING_URI."""

    def __init__(self, experiment: str, workdir: Path, config: Mapping[str, Any]):
        mlflow = import_tracker("mlflow")
        self._metric = mlflow.entities.Metric
        self._client = mlflow.MlflowClient()
        kept = workdir / "mlflow.json"
        run = self._find(kept_id(kept, experiment))
        if run:
            self._client.update_run(run.info.run_id, status="RUNNING")
        else:
            run = self._create(experiment, workdir.name)
            keep_id(kept, experiment, run.info.run_id)
        self._run_id = run.info.run_id
        history = self._client.get_metric_history(self._run_id, "loss/total")
        self._sent = max((metric.step for metric in history), default=0)
        fields = {self._key(name): str(value)[:MAX_VALUE] for name, value in flat_fields(config)}
        new = fields.keys() - run.data.params.keys()  # a parameter never changes
        params = [mlflow.entities.Param(name, fields[name]) for name in sorted(new) if fields[name]]
        for start in range(0, len(params), PARAMS_AT_ONCE):
            self._client.log_batch(self._run_id, params=params[start : start + PARAMS_AT_ONCE])
        server = re.sub("//[^/]*@", "//", self._client.tracking_uri)  # without a password
        say(f"MLflow: run {self._run_id} of {experiment!r} in {server}")

    def _find(self, run_id: str | None) -> Any:
        """The run of that id, or None if there is none on this server."""
        try:
            return run_id and self._client.get_run(run_id)
        except Exception as error:
            if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def _create(self, experiment: str, name: str) -> Any:
        found = self._client.get_experiment_by_name(experiment)
        experiment_id = found.experiment_id if found else self._client.create_experiment(experiment)
        return self._client.create_run(experiment_id, run_name=name)

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """As `Sink.scalars`."""
        if step < self._sent:  # a resumed run repeats steps, with the same numbers
            return
        now = int(1000 * time.time())
        finite = {self._key(name): value for name, value in values.items() if value is not None}
        metrics = [self._metric(name, value, now, step) for name, value in finite.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """As `Sink.picture`."""
        if step >= self._sent:
            self._client.log_image(self._run_id, pixels, key=name, step=step)

    def close(self, failed: bool) -> None:
        """As `Sink.close`."""
        self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")

    @staticmethod
    def _key(name: str) -> str:
        """A name as MLflow takes it: letters, digits, _, -, space, and "." and "/" between them."""
        return re.sub(r"[^\w\-. /]|(?<!\w)\.|\.(?!\w)|(?<=/)/|^/|/$", "_", name)[:MAX_KEY]


TRACKERS: dict[str, tuple[str, Callable[..., Sink]]] = {  # by field of config.run, which is also the package's name
    "wandb": ("Weights & Biases", Wandb),
    "mlflow": ("MLflow", MLflow),
}


class InBackground:
    """A tracker in a thread of its own: no call waits for it, and its first failure is reported."""

    def __init__(self, name: str, connect: Callable[[], Sink]):
        """connect: opens the tracker."""
        self._name, self._warned = name, False
        self._calls: queue.Queue[Callable[[Sink], None] | None] = queue.Queue(MAX_PENDING)
        self._thread = threading.Thread(target=self._work, args=(connect,), daemon=True)
        self._thread.start()

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """As `Sink.scalars`, later."""
        self._put(lambda tracker: tracker.scalars(step, values))

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """As `Sink.picture`, later."""
        self._put(lambda tracker: tracker.picture(step, name, pixels))

    def close(self, failed: bool) -> None:
        """Waits until all is delivered, up to CLOSE_SECONDS, or STOP_SECONDS if the run failed."""
        seconds = STOP_SECONDS if failed else CLOSE_SECONDS
        self._put(lambda tracker: tracker.close(failed))
        self._put(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._warn(f"it has not taken everything {seconds:.0f} s after the end of the run")

    def _put(self, call: Callable[[Sink], None] | None) -> None:
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._warn(f"more than {MAX_PENDING} calls wait for it")

    def _work(self, connect: Callable[[], Sink]) -> None:
        tracker = self._try(connect)
        while call := self._calls.get():
            if tracker:
                self._try(functools.partial(call, tracker))

    def _try(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:  # of any kind: the run goes on
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            self._warn(f"{kind}{first_line(error)}")

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            warn(
                f"{self._name} failed ({reason}). The run goes on, and what is logged may be missing there; "
                "metrics.jsonl and TensorBoard have everything."
            )


def require(config: ConfigDict) -> None:
    """Raises UserError if the package of a tracker that config.run names is not installed."""
    for field in _wanted(config):
        import_tracker(field)


def open_trackers(config: ConfigDict, workdir: Path) -> list[Sink]:
    """The trackers that config.run names."""
    opened: list[Sink] = []
    for field in _wanted(config):
        name, tracker = TRACKERS[field]
        opened.append(InBackground(name, functools.partial(tracker, config.run[field], workdir, config.to_dict())))
    return opened


def _wanted(config: ConfigDict) -> list[str]:
    return [field for field in TRACKERS if config.run[field]]


def import_tracker(package: str) -> ModuleType:
    """The package of a tracker; raises UserError if it cannot be imported."""
    try:
        module = importlib.import_module(package)
        if not module.__file__:  # a folder of that name, where trackers like to write
            raise ModuleNotFoundError(f"No module named {package!r}")
        return module
    except Exception as error:  # broken installations raise anything
        raise UserError(
            f"config.run.{package} is set, but the package {package} cannot be imported ({type(error).__name__}: "
            f'{first_line(error)}): pip install {package}, or leave the field "".'
        ) from None


def kept_id(path: Path, place: str) -> str | None:
    """The id that `keep_id` wrote to a file for a project or experiment; None without one, or for another `place`."""
    try:
        kept = read_json(path)
    except (OSError, ValueError):
        return None
    is_ours = isinstance(kept, dict) and kept.get("place") == place and isinstance(kept.get("id"), str)
    return kept["id"] if is_ours and re.fullmatch(r"\w{1,64}", kept["id"]) else None


def keep_id(path: Path, place: str, run_id: str) -> str:
    """Writes the id of a run, by which it is resumed, and returns it."""
    atomic_write_text(path, json.dumps({"place": place, "id": run_id}) + "\n")
    return run_id


def flat_fields(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("train.epochs", 130) and so on."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flat_fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
