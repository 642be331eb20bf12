"""What a run tells while it trains: console lines, a progress bar, metrics.jsonl and TensorBoard events."""

import contextlib
import json
import time

import tqdm
from tensorboardX import SummaryWriter

from isnet_jax import distributed
from isnet_jax.checkpoints import write_whole
from isnet_jax.console import duration, say
from isnet_jax.stored import open_file


class Log:
    """Log of one run in `workdir`, from step `first`; only the first process writes and speaks.

    What an earlier start logged beyond `first` is dropped: those steps are about to be done again. `evaluated` says
    whether the evaluation at `first` is logged.
    """

    def __init__(self, workdir, config, first, total_steps, schedule):
        self.config, self.total_steps, self.schedule = config, total_steps, schedule
        self.active, self.evaluated = distributed.is_first(), False
        if self.active:
            path = workdir / "metrics.jsonl"
            if path.exists():
                rows = [row for row in read_metrics(path) if row["step"] <= first]
                write_whole(path, "".join(f"{json.dumps(row)}\n" for row in rows))
                self.evaluated = any(row["step"] == first and "weights/miou" in row for row in rows)
            self.file = open(path, "a")  # noqa: SIM115  closed on exit
            self.writer = SummaryWriter(
                str(workdir / "tensorboard"), purge_step=first + 1, max_queue=0
            )  # or, where its thread has met a full disk, it waits for ever
        self.bar = tqdm.tqdm(
            total=total_steps,
            initial=first,
            unit="step",
            disable=None if self.active else True,
            leave=False,
            dynamic_ncols=True,
        )
        self.seconds = self.waited = self.steps = 0
        self.warm = False

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.bar.close()
        if self.active:
            with contextlib.suppress(OSError):  # a full disk is told of by what comes here
                self.writer.close()
            with contextlib.suppress(OSError):
                self.file.close()

    def resume_clock(self):
        """Leaves evaluation and checkpoints out of the measured speed."""
        self.clock = time.perf_counter()

    def on_metrics(self, step, losses, waited):
        """Takes the losses of a step and the seconds it waited for its data."""
        now = time.perf_counter()
        self.bar.update(step - self.bar.n)
        if self.warm:
            self.seconds += now - self.clock
            self.waited, self.steps = self.waited + waited, self.steps + 1
        self.warm, self.clock = True, now  # the first step compiles: it is no measure of speed
        if self.active and (step % self.config.run.log_every_steps == 0 or step == self.total_steps):
            self._tell(step, losses)
            self.seconds = self.waited = self.steps = 0

    def _tell(self, step, losses):
        values = {f"loss/{name}": losses[name] for name in ("auxiliary", "stage1", "stage2", "total")}
        values |= {"grad_norm": losses["grad_norm"], "lr": float(self.schedule(step - 1))}
        rate = ""
        if self.steps:
            images = self.steps / self.seconds * self.config.train.global_batch_size
            share = self.waited / self.seconds
            values |= {"images_per_second": images, "data_wait_share": share}
            left = (self.total_steps - step) * self.seconds / self.steps
            rate = f"  {images:.1f} img/s  data wait {100 * share:.0f} %  ETA {duration(left)}"
        say(
            f"step {step:>{len(str(self.total_steps))}}/{self.total_steps}  loss {losses['total']:.4f} "
            f"(auxiliary {losses['auxiliary']:.3f}, stage 1 {losses['stage1']:.3f}, stage 2 {losses['stage2']:.3f})  "
            f"lr {values['lr']:.2e}{rate}"
        )
        self.write(step, values)

    def write(self, step, values):
        """Adds {name: number} at `step` to metrics.jsonl and to TensorBoard."""
        if self.active:
            self.file.write(json.dumps({"step": step, **values}) + "\n")
            self.file.flush()
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)


def read_metrics(path):
    """The rows of a metrics.jsonl, dicts with "step"; a last line cut off by a crash is left out."""
    rows = []
    with open_file(path) as file:
        lines = file.read().decode(errors="replace").splitlines()
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not (isinstance(row, dict) and isinstance(row.get("step"), int) and abs(row["step"]) < 2**53):
            break
        rows.append(row)
    return rows
