"""The best state of a run, by a score of its evaluations, and the stop of a run whose score no longer improves."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from isnet_jax.checkpoints.directory import CheckpointDirectory, as_dict
from isnet_jax.checkpoints.manager import BEST_DIR, Checkpoints, Damaged, agreed_paths, read_with_retry
from isnet_jax.config import split_metric
from isnet_jax.errors import UserError
from isnet_jax.evaluation import metrics
from isnet_jax.runtime import distributed
from isnet_jax.runtime.console import say, warn
from isnet_jax.training.log import evaluated_steps

CONFUSION = "confusion"  # the entry of the best checkpoint that holds the counts of its evaluation
Results = Mapping[str, Mapping[str, Any]]  # {"weights" or "ema": `metrics.scores` with "confusion" (K, K)}


def make_score(metric: str, class_names: Sequence[str]) -> Callable[[Results], float]:
    """The score that config.run.best_metric names, in [0, 1] or NaN, as a function of an evaluation's results.

    Raises UserError if it names a class that the data does not have.
    """
    weights, score, name = split_metric(metric)
    if not name:
        return lambda results: float(results[weights][score])
    if name not in class_names:
        raise UserError(
            f"config.run.best_metric is {metric!r:.200}, but the data has no class of that name; its classes are "
            f"{', '.join(class_names)}."
        )
    index = list(class_names).index(name)
    return lambda results: float(results[weights][score][index])


class BestCheckpoint(CheckpointDirectory):
    """The state with the best score so far, in `workdir`/best/STEP: a whole checkpoint from which a run can resume.

    It holds the confusion matrices of its evaluation, so that its score, by any metric, is never apart from it.
    """

    def __init__(self, checkpoints: Checkpoints, config: ConfigDict, score: Callable[[Results], float]):
        """Opens or creates the directory; `score` is what `make_score` returned. `step` is 0 before the first one."""
        self._checkpoints, self._score_of = checkpoints, score
        self.metric, self.limit = config.run.best_metric, config.run.stop_after_evaluations
        self.step, self.score = 0, math.nan
        found = self._read(config)
        super().__init__(checkpoints.workdir / BEST_DIR, keep=1)
        if found:
            self.step, self.score = found
            say(f"best {self.metric} so far: {self._in_words()}")

    def _read(self, config: ConfigDict) -> tuple[int, float] | None:
        """Step and score of the checkpoint of an earlier start, if there is one; a damaged one is quarantined."""
        paths = agreed_paths(self._checkpoints.workdir, "--workdir", best=True)
        if not paths:
            return None
        path, fields = paths[0], None
        counts = jax.ShapeDtypeStruct((config.model.num_classes,) * 2, np.int64)
        kinds = ("weights", "ema") if config.train.ema_decay else ("weights",)
        try:
            fields = read_with_retry(path, {CONFUSION: dict.fromkeys(kinds, counts)})
        except Damaged as error:
            warn(str(error))
        if not distributed.all_processes(fields is not None):
            self._checkpoints.quarantine([path])
            return None
        assert fields is not None
        return int(path.name), self._score_of(
            {kind: metrics.scores(counts) for kind, counts in fields[CONFUSION].items()}
        )

    def offer(self, step: int, state: Any, results: Results) -> None:
        """Keeps `state`, of which an evaluation has the `results`, if its score is the best so far.

        Returns once it is on disk; the previous best is deleted then. Call this before the evaluation is logged: what
        is logged is not evaluated again. Raises UserError if the state cannot be written.
        """
        score = self._score_of(results)
        if not math.isfinite(score):
            say(f"step {step}  {self.metric} is undefined, as no evaluated pixel counts for it: not a candidate")
        elif distributed.broadcast_from_first(step > self.step and not score <= self.score):
            self._checkpoints.wait()  # one checkpoint is written at a time
            counts = {kind: np.asarray(result["confusion"], np.int64) for kind, result in results.items()}
            self.save(step, {**as_dict(state), CONFUSION: counts})
            self.wait()
            self.step, self.score = step, score
            say(f"step {step}  best {self.metric} so far: {metrics.percent(score, unit=' %')}")
        elif step > self.step:
            say(f"step {step}  {self.metric} {metrics.percent(score, unit=' %')}; the best is {self._in_words()}")

    def is_over(self, step: int) -> bool:
        """Whether config.run.stop_after_evaluations ends the run at `step`; the same on all processes."""
        if not self.limit or not math.isfinite(self.score):
            return False
        logged = evaluated_steps(self._checkpoints.workdir) if distributed.is_first() else ()
        later = sum(self.step < evaluated <= step for evaluated in logged)
        return int(distributed.broadcast_from_first(later)) >= self.limit

    def record(self) -> dict[str, Any]:
        """What results.json says: step, metric, and score in percent; null without a best, or if it is undefined."""
        score = round(100 * self.score, 4) if math.isfinite(self.score) else None
        return {"step": self.step or None, "metric": self.metric, "score": score}

    def announce(self) -> None:
        """Prints which step was best."""
        if self.step:
            say(f"best {self.metric}: {self._in_words()}, kept in {self.path / str(self.step)} (--best)")
        else:
            say(f"no evaluation had a defined {self.metric}, so no best checkpoint is kept")

    def resume_hint(self) -> str:
        """As in the base class: the newest checkpoint of the run is among the others."""
        return self._checkpoints.resume_hint()

    def _in_words(self) -> str:
        return f"{metrics.percent(self.score, unit=' %')} at step {self.step}"
