"""Heartbeats between the processes of a run: they detect a dead process while the others wait at a barrier.

A collective fails immediately if a connection breaks. At a barrier, as for a checkpoint, only JAX's coordination
service reports the death, by aborting the process. Each process therefore writes a counter to the service's key-value
store, reads the other counters, and exits before JAX aborts it.
"""

import threading
import time
from collections.abc import Callable

import jax
from jax._src import distributed

SECONDS = 30  # a process silent for this long counts as dead
INTERVAL = 3  # seconds between two beats
_FOLDER = "isnet_jax/heartbeat"


def watch(on_death: Callable[[list[int]], None]) -> None:
    """Starts threads that call `on_death` once, with the indices of the silent processes.

    They end with the connection, after JAX's barrier at exit. Only process 0 is named if it is silent, since the others
    cannot be heard without it. Time counts in intervals of this process: a pause of all, such as Ctrl-Z, is no silence.
    """
    own = jax.process_index()
    missed = {index: 0 for index in range(jax.process_count()) if index != own}  # intervals without a new counter

    def count() -> None:
        while _still_connected():
            for index in missed:
                missed[index] += 1
            silent = [index for index, intervals in missed.items() if intervals * INTERVAL > SECONDS]
            if silent:
                on_death([0] if 0 in silent else silent)
                return

    for target, arguments in (_beat, (own, missed)), (count, ()):  # a beat may wait for process 0 forever
        threading.Thread(target=target, args=arguments, name="heartbeat", daemon=True).start()


def _still_connected() -> bool:
    """Waits for an interval; whether this process is connected with the others afterwards."""
    time.sleep(INTERVAL)
    return distributed.global_state.client is not None


def _beat(own: int, missed: dict[int, int]) -> None:
    """Increments the own counter, and sets `missed` to 0 for each process whose counter has changed."""
    client, number, seen = distributed.global_state.client, 0, dict[int, str]()
    while client is not None and _still_connected():
        number += 1
        try:
            client.key_value_set(f"{_FOLDER}/{own}", str(number), allow_overwrite=True)
            counters = {int(key.rsplit("/", 1)[1]): value for key, value in client.key_value_dir_get(_FOLDER)}
        except jax.errors.JaxRuntimeError:  # one failed call is no death
            continue
        for index in missed:
            if index in counters and counters[index] != seen.get(index):
                missed[index], seen[index] = 0, counters[index]
