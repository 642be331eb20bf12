"""A small training run, as a user would start it: a folder in CamVid's layout, its config, its command."""

import contextlib
import copy
import io
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
import warnings
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import flags
from absl.testing import flagsaver
from etils import epath
from paths import ROOT
from PIL import Image

from isnet_jax import config
from isnet_jax.runtime import interrupts

FIELDS = {
    "augment.resize": (),
    "augment.crop_size": (32, 32),
    "augment.scale_range": (1.0, 1.5),
    "train.global_batch_size": 8,
    "train.epochs": 3,
    "test.batch_size": 8,
    "run.eval_every_epochs": 2,
    "run.checkpoint_every_steps": 3,
    "run.keep_checkpoints": 5,
    "run.log_every_steps": 1,
}


def make_camvid(folder):
    """Stripes of classes in their own colours, 48x64, 18 to train and 5 to evaluate: (source, data_dir)."""
    source = folder / "camvid"
    rng = np.random.default_rng(0)
    palette = rng.integers(0, 256, (12, 3))
    for split, count in (("train", 18), ("val", 5), ("test", 2)):
        for kind in ("images", "labels"):
            (source / split / kind).mkdir(parents=True)
        for i in range(count):
            label = np.repeat(rng.integers(0, 12, (6, 8)), 8, 0).repeat(8, 1).astype(np.uint8)
            image = np.clip(palette[label] + rng.integers(-20, 20, (48, 64, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(image).save(source / split / "images" / f"{i:03d}.jpg", quality=95)
            Image.fromarray(label).save(source / split / "labels" / f"{i:03d}.png")
    return source, folder / "data"


def overrides(camvid, **more):
    """Words of a command line: 2 steps an epoch, 3 epochs."""
    fields = {"data.source": camvid[0], "data.data_dir": camvid[1], **FIELDS, **more}
    return [f"--config.{name}={value}" for name, value in fields.items()]


def small_config(camvid, **more):
    """The same as a config."""
    c = config.default("resnet18")
    c.model.num_classes, c.data.name = 11, "camvid"
    c.update_from_flattened_dict({"test.resize": (), **FIELDS, **more})
    c.data.source, c.data.data_dir = map(str, camvid)
    return c


def command(*arguments, module="main"):
    return [sys.executable, "-m", f"isnet_jax.{module}", *arguments]


def environment(devices=1):
    """Of a command, with the compilation cache of the tests."""
    return {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(ROOT)}


def run(*arguments, module="main", devices=1, cwd=ROOT):
    """A command as typed: (exit code, stdout, stderr)."""
    done = subprocess.run(
        command(*arguments, module=module),
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
        env=environment(devices),
    )
    return done.returncode, done.stdout, done.stderr


def run_inside(*arguments, module="main", cwd=ROOT):
    """Runs a command in this process: (exit code, stdout, stderr). A subprocess costs ten CPU seconds.

    For commands that end before they compute.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    out, err = (io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2))
    code = 0
    with contextlib.ExitStack() as stack:
        for context in (
            contextlib.chdir(cwd),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.object(sys, "argv", [f"isnet_jax.{module}", *map(str, arguments)]),
            mock.patch.object(sys, "unraisablehook", sys.unraisablehook),
            mock.patch.object(interrupts, "_state", copy.copy(interrupts._state)),
            mock.patch.dict(os.environ),
            warnings.catch_warnings(action="ignore"),  # runpy's, of modules that are imported already
            own_flags(),
        ):
            stack.enter_context(context)
        try:
            runpy.run_module(f"isnet_jax.{module}", run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
        finally:
            for number, handler in handlers.items():
                if handler is not None:  # not Python's
                    signal.signal(number, handler)
    return code, *(text.buffer.getvalue().decode(errors="surrogateescape") for text in (out, err))


@contextlib.contextmanager
def own_flags():
    """Deletes the flags that a command has defined, and restores the values of the others.

    Flags of libraries that were imported meanwhile stay.
    """
    saved = flagsaver.save_flag_values()
    try:
        yield
    finally:
        for name, value in flagsaver.save_flag_values().items():
            defined_by = flags.FLAGS.find_module_defining_flag(name)
            if name not in saved and name.split(".")[0] != "config" and not defined_by.startswith("isnet_jax"):
                saved[name] = value
        flagsaver.restore_flag_values(saved)


def unwrapped(text):
    return " ".join(text.split())


def weights_at(workdir, step, folder="checkpoints"):
    """Every array of the checkpoint at `step`, by name."""
    directory, handler = epath.Path(workdir / folder / str(step) / "default"), ocp.PyTreeCheckpointHandler()
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(directory).tree)
    state = handler.restore(directory, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(state)}


def assert_same_weights(a, b, step, folder="checkpoints"):
    """Bit for bit: parameters, momentum, statistics and step."""
    a, b = weights_at(a, step, folder), weights_at(b, step, folder)
    assert a.keys() == b.keys() and len(a) > 200
    for name, value in a.items():
        np.testing.assert_array_equal(b[name], value, name)


class Started:
    """A command that runs; `lines` is what it has printed so far."""

    def __init__(self, words, **more):
        self.process = subprocess.Popen(
            words,
            cwd=ROOT,
            env={**environment(), **more},
            text=True,
            bufsize=1,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.lines = []
        threading.Thread(target=lambda: self.lines.extend(iter(self.process.stdout.readline, "")), daemon=True).start()

    def wait_for(self, pattern, seconds=200):
        """Until a line matches."""
        end = time.monotonic() + seconds
        while not any(re.search(pattern, line) for line in list(self.lines)):
            assert self.process.poll() is None and time.monotonic() < end, (self.lines, self.process.communicate())
            time.sleep(0.01)

    def end(self, seconds=120):
        """Its exit code and standard error."""
        try:
            self.process.wait(seconds)
        finally:
            self.process.kill()
        return self.process.returncode, self.process.stderr.read()
