"""Work ahead in threads: decoders release Python's global interpreter lock."""

import collections
import concurrent.futures
import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def num_workers() -> int:
    """Threads that work ahead: one for each core that this process may use (`taskset` may leave it a few), at most 16.

    More would hold more results in memory than the network takes from them.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, cores)


def map_in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    cost: Callable[[Item], float] = lambda item: 0,
    max_cost: float = 0,
) -> Iterator[Result]:
    """Yields function(item) for each item, in their order, while threads work on the next ones.

    Results wait in memory. The number of items in flight is therefore bounded, and so is the sum of their costs: it
    exceeds `max_cost` only for a single item that does so alone.
    """
    workers = num_workers()
    items = iter(items)
    in_flight: collections.deque[tuple[concurrent.futures.Future, float]] = collections.deque()
    total_cost = 0.0
    upcoming = list(itertools.islice(items, 1))
    with contextlib.ExitStack() as stack:
        pool = concurrent.futures.ThreadPoolExecutor(workers)
        stack.callback(pool.shutdown, cancel_futures=True)
        while upcoming or in_flight:
            while upcoming and len(in_flight) < 4 * workers:
                item_cost = cost(upcoming[0])
                if in_flight and total_cost + item_cost > max_cost:
                    break
                in_flight.append((pool.submit(function, upcoming[0]), item_cost))
                total_cost += item_cost
                upcoming = list(itertools.islice(items, 1))
            future, item_cost = in_flight.popleft()
            yield future.result()
            total_cost -= item_cost
