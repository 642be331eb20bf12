"""A run of several processes notices that one has died, wherever the others wait.

A collective fails at once where a connection breaks. A process that waits at a barrier, as for a checkpoint, learns of
the death from JAX's coordination service only, which then aborts it with a stack trace. So each process writes a
counter to that service's key-value store and reads those of the others, and gives up before the service does.
"""

import threading
import time
from collections.abc import Callable

import jax
from jax._src import distributed

SECONDS = 30  # a process silent for this long counts as dead
_INTERVAL = 3
_FOLDER = "isnet_jax/heartbeat"


def watch(on_death: Callable[[list[int]], None]) -> None:
    """Calls `on_death`, from a thread, with the indices of the processes that have been silent for SECONDS."""
    client = distributed.global_state.client
    if client is not None:
        threading.Thread(target=_beat, args=(client, on_death), name="heartbeat", daemon=True).start()


def _beat(client: "distributed._jax.DistributedRuntimeClient", on_death: Callable[[list[int]], None]) -> None:
    own, count = jax.process_index(), 0
    seen = {index: ("", time.monotonic()) for index in range(jax.process_count()) if index != own}
    while True:
        count += 1
        try:
            client.key_value_set(f"{_FOLDER}/{own}", str(count), allow_overwrite=True)
            counters = {int(key.rsplit("/", 1)[1]): value for key, value in client.key_value_dir_get(_FOLDER)}
        except jax.errors.JaxRuntimeError:  # the service is gone: the run ends, or JAX ends this process
            return
        now = time.monotonic()
        for index, (value, _) in seen.items():
            if counters.get(index, "") != value:
                seen[index] = counters[index], now
        if silent := [index for index, (_, since) in seen.items() if now - since > SECONDS]:
            on_death(silent)
            return
        time.sleep(_INTERVAL)
