"""Ctrl-C at the moments that libraries handle badly: one line and exit code 130, never a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INTERRUPT = """
import os, signal, time
def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(500):
        time.sleep(0.01)
"""
COMMAND = (
    INTERRUPT
    + """
import gc, sys
from isnet_jax import command
def body(config, values):
{body}
command.run(body, "", needs_config=False, goes_on="there")
"""
)
LINE = "interrupted; the same command goes on there\n"


def run(*words, **options):
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        text=True,
        timeout=60,
        stderr=subprocess.PIPE,
        **{"stdout": subprocess.PIPE, **options},
    )


@pytest.mark.parametrize(
    "module, words, library",
    [
        ("main", ["--config=configs/quickstart.py"], "flax"),
        ("evaluate", [], "jax"),
        ("predict", [], "cv2"),
        ("convert", [], "jax"),
        ("compare", [], "numpy"),
        ("report", [], "PIL"),
        ("prepare", [], "ml_collections"),
        ("prepare", ["--dataset=scenes", "--check"], "tensorflow"),
    ],
)
def test_while_libraries_are_imported(module, words, library, tmp_path):
    """Of the command, of the config and of the body; the library's own handlers never see it."""
    (tmp_path / f"{library}.py").write_text(f"{INTERRUPT}\ntry:\n    interrupt()\nexcept BaseException:\n    pass\n")
    done = run("-m", f"isnet_jax.{module}", *words, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 130 and done.stderr.startswith("\ninterrupted") and done.stderr.count("\n") == 2, done


@pytest.mark.parametrize(
    "body, out",
    [
        (
            """
    try:
        interrupt()
    finally:
        print("in order")
""",
            "in order\n",
        ),
        (
            """
    def callback(*_):  # as JAX has one
        gc.callbacks.clear()
        interrupt()
    gc.callbacks.append(callback)
    try:
        gc.collect()
        print("dropped")
        time.sleep(10)
    finally:
        print("in order")
""",
            "dropped\nin order\n",
        ),
        (
            """
    try:
        interrupt()
    except KeyboardInterrupt:
        raise RuntimeError("what a library makes of it")
""",
            "",
        ),
        (
            """
    try:
        interrupt()
    finally:
        print("in order")
        interrupt()
        print("not reached")
""",
            "in order\n",
        ),
    ],
    ids=["raised", "dropped by Python", "turned into another error", "twice"],
)
def test_in_the_body(body, out):
    done = run("-c", COMMAND.format(body=body))
    assert (done.returncode, done.stdout, done.stderr) == (130, out, f"\n{LINE}")


def test_ignored_where_the_shell_says_so():
    """As of a job in the background."""
    body = "    os.kill(os.getpid(), signal.SIGINT)\n    print('goes on')"
    done = run("-c", "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + COMMAND.format(body=body))
    assert (done.returncode, done.stdout, done.stderr) == (0, "goes on\n", "")


def test_importing_the_package_leaves_signals_alone():
    code = "import signal, isnet_jax; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    assert run("-c", code).returncode == 0


@pytest.mark.parametrize(
    "words", [["-m", "isnet_jax.prepare", "--help"], ["-c", COMMAND.format(body="    print('a line')")]]
)
def test_output_that_nobody_reads(words):
    reader, writer = os.pipe()
    os.close(reader)
    done = run(*words, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_preparing_needs_no_jax():
    """A mistake is told at once; what TensorFlow imports later is its own affair."""
    code = (
        "import atexit, runpy, sys; sys.argv[1:] = ['--dataset=none']; "
        "atexit.register(lambda: print({'jax', 'flax', 'tensorflow'} & {*sys.modules})); "
        "runpy.run_module('isnet_jax.prepare', run_name='__main__')"
    )
    done = run("-c", code)
    assert (done.returncode, done.stdout) == (1, "set()\n") and "no data set 'none'" in done.stderr
