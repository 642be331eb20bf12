"""Ctrl-C at moments that libraries handle badly: one line and exit code 130, never a traceback."""

import os
import subprocess
import sys

import pytest
from paths import ROOT

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
from isnet_jax import cli
from isnet_jax.runtime import interrupts
def main(config, flag_values):
{body}
cli.run(main, "", needs_config=False, resume_hint="there")
"""
)
IN_A_RUN = """
    from isnet_jax.errors import translating_disk_and_memory_errors
    with translating_disk_and_memory_errors("The run", "--workdir", "there", ""):
"""
LINE = "interrupted; the same command resumes there\n"


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
        ("evaluate", ["--config=configs/quickstart.py", "--checkpoint=none"], "jax"),
        ("predict", [], "cv2"),
        ("convert", ["--config=configs/quickstart.py", "--input=none.pth", "--output=none"], "jax"),
        ("compare", ["none"], "numpy"),
        ("report", ["none"], "PIL"),
        ("compile_check", ["--config=configs/quickstart.py"], "jax"),
        ("prepare", [], "ml_collections"),
        ("prepare", ["--dataset=scenes", "--check"], "tensorflow"),
    ],
)
def test_ctrl_c_while_a_library_is_imported(module, words, library, tmp_path):
    """By the command, by the config or by its `main`; the library's own handlers never see the interrupt."""
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
        print("cleaned up")
""",
            "cleaned up\n",
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
        print("cleaned up")
""",
            "dropped\ncleaned up\n",
        ),
        (
            """
    try:
        interrupt()
    except KeyboardInterrupt:
        raise RuntimeError("a library's own error")
""",
            "",
        ),
        (
            """
    try:
        interrupt()
    finally:
        print("cleaned up")
        interrupt()
        print("not reached")
""",
            "cleaned up\n",
        ),
    ],
    ids=["raised", "dropped by Python", "turned into another error", "twice"],
)
def test_ctrl_c_in_main(body, out):
    done = run("-c", COMMAND.format(body=body))
    assert (done.returncode, done.stdout, done.stderr) == (130, out, f"\n{LINE}")


@pytest.mark.parametrize(
    "signals, code, out, err",
    [
        (
            "SIGINT",
            130,
            "next step\nstopping\n",
            f"\nstopping after this step; press Ctrl-C again to exit immediately\n\n{LINE}",
        ),
        ("SIGTERM", 75, "next step\nstopping\n", "\nstopped by SIGTERM; the same command resumes there\n"),
        (
            "SIGINT SIGINT",
            130,
            "",
            f"\nstopping after this step; press Ctrl-C again to exit immediately\n\n{LINE}",
        ),
    ],
)
def test_deferred_signals_wait_for_the_step(signals, code, out, err):
    """StopRequested then reaches the command as it is; a second signal exits within the step."""
    body = f"""
    try:
        with interrupts.deferred():
            for name in "{signals}".split():
                os.kill(os.getpid(), getattr(signal, name))
                time.sleep(0.1)
            print("next step")
            if interrupts.stop_requested():
                raise interrupts.StopRequested
    finally:
        print("stopping")
"""
    done = run("-c", COMMAND.format(body=body))
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)


def test_error_after_a_deferred_signal_is_reported():
    """Such as a full disk where the run saves before it stops: the signal has interrupted no library."""
    body = """
    from isnet_jax.errors import UserError
    with interrupts.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        raise UserError("The disk is full.")
"""
    done = run("-c", COMMAND.format(body=body))
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: The disk is full.\n")


def test_ctrl_c_is_ignored_where_the_shell_says_so():
    """As for background jobs."""
    body = "    os.kill(os.getpid(), signal.SIGINT)\n    print('continues')"
    done = run("-c", "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + COMMAND.format(body=body))
    assert (done.returncode, done.stdout, done.stderr) == (0, "continues\n", "")


def test_importing_the_package_leaves_signals_alone():
    code = "import signal, isnet_jax; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    assert run("-c", code).returncode == 0


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "isnet_jax.prepare", "--help"],
        ["-c", COMMAND.format(body="    print('a line')")],
        ["-c", COMMAND.format(body=IN_A_RUN + "        print('a line')")],
    ],
)
def test_broken_pipe_exits_with_141(words):
    reader, writer = os.pipe()
    os.close(reader)
    done = run(*words, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_prepare_reports_mistakes_before_it_imports_libraries():
    """Neither JAX nor TensorFlow, which takes seconds."""
    code = (
        "import atexit, runpy, sys; sys.argv[1:] = ['--dataset=none']; "
        "atexit.register(lambda: print({'jax', 'flax', 'tensorflow'} & {*sys.modules})); "
        "runpy.run_module('isnet_jax.prepare', run_name='__main__')"
    )
    done = run("-c", code)
    assert (done.returncode, done.stdout) == (1, "set()\n") and "no data set 'none'" in done.stderr
