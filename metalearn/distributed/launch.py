"""Starting the ranks of a run, meeting them, and saying what became of one that is gone.

Rank 0 starts the others as processes of its own, or a launcher such as torchrun started all of them. Either
way they meet at a store, from which the others read what to build: a file in a private folder, or the
launcher's.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml

from metalearn.build.device import num_ranks
from metalearn.build.parts import Parts
from metalearn.distributed.processes import LOST, Siblings, Workers
from metalearn.distributed.strategy import Link, LostError, MultiProcess, RankError, serve
from metalearn.distributed.torchrun import launched
from metalearn.engine.executor import Executor, TaskPlan
from metalearn.engine.settings import Settings
from metalearn.engine.strategy import SingleProcess
from metalearn.errors import ConfigError
from metalearn.fault_injection import fault
from metalearn.rundir.messages import listening

log = logging.getLogger(__name__)

WORK = "work"  # key of the store: what to build, or null if there is nothing to do
# rank 0 may take hours before its next order; that it is gone is noticed in other ways
FOREVER = timedelta(days=365)
POLL = 0.02  # seconds


def pinned(cfg: dict[str, Any]) -> dict[str, Any]:
    """The configuration with device.ranks as the number that this run has. A launcher has already decided
    it.
    """
    wanted, started = cfg["device"]["ranks"], launched()
    if started is not None and wanted not in (1, "auto", started[1]):
        raise ConfigError(
            f"device.ranks={wanted}, but the launcher started {started[1]} ranks; use device.ranks=auto"
        )
    ranks = num_ranks(cfg) if started is None else started[1]
    tasks = cfg["trainer"]["meta_batch_size"]
    if ranks > tasks:
        raise ConfigError(
            f"the launcher started {ranks} ranks, but trainer.meta_batch_size={tasks}; start at most {tasks}"
        )
    if ranks > 1 and not dist.is_available():
        raise ConfigError(
            f"device.ranks={ranks}, but this PyTorch was built without torch.distributed; use device.ranks=1"
        )
    return {**cfg, "device": {**cfg["device"], "ranks": ranks}}


@contextmanager
def open_strategy(
    cfg: dict[str, Any],
    parts: Parts,
    *,
    check: Callable[[], None],
    give_up: Callable[[RankError], None],
) -> Iterator[SingleProcess]:
    """The strategy of a run, as long as it is needed.

    check: raises to stop the start. give_up: a last word before this process ends, because a
    rank is gone and the main thread has not noticed for a while.
    """
    settings, ranks = Settings.of(cfg), cfg["device"]["ranks"]
    executor = Executor(parts.algorithm, parts.plan)
    if ranks == 1:
        yield SingleProcess(parts.algorithm, parts.source, executor, settings)
        return
    threads = torch.get_num_threads()
    log.info(f"{ranks} ranks of {threads} thread{'s' if threads > 1 else ''} each")
    if parts.algorithm.trains_on == "examples":
        log.info("a flat minibatch is never split: rank 0 trains alone, evaluation is shared")
    trained = parts.trained and {**parts.trained, "trusted": []}
    work = json.dumps({"cfg": {**cfg, "trusted": []}, "plan": asdict(parts.plan), "trained": trained})
    with started(ranks, work, cfg["trusted"], give_up) as (store, others):
        await_ready(store, ranks, others, check)
        with connected(store, 0, ranks, parts.device):
            link = Link(0, ranks, parts.device, others.failure)
            strategy = MultiProcess(parts.algorithm, parts.source, executor, settings, link, others.require)
            yield strategy
            strategy.dismiss()
        for line in others.farewell():
            log.info(line)


@contextmanager
def started(
    ranks: int, work: str, trusted: list[str], give_up: Callable[[RankError], None]
) -> Iterator[tuple[dist.Store, Workers | Siblings]]:
    """The other ranks and the store to meet them at."""
    if launched() is not None:
        store = launcher_store()
        store.set(WORK, work)
        yield store, Siblings()
        return
    with tempfile.TemporaryDirectory(prefix="metalearn-") as folder:  # nobody else may enter it
        path = Path(folder) / "store"
        store = dist.FileStore(str(path), ranks)
        store.set(WORK, work)
        with Workers(ranks, path, trusted, give_up) as workers:
            yield store, workers


def await_ready(store: dist.Store, ranks: int, others: Workers | Siblings, check: Callable[[], None]) -> None:
    """Wait until all are built: meeting blocks, and a rank that died before it would never come."""
    while not store.check([ready(rank) for rank in range(1, ranks)]):
        check()
        others.require()
        time.sleep(POLL)


def ready(rank: int) -> str:
    return f"ready/{rank}"


@contextmanager
def connected(store: dist.Store, rank: int, ranks: int, device: torch.device) -> Iterator[None]:
    """torch's default process group: orders over gloo, tensors of a GPU over nccl."""
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    with loopback():
        dist.init_process_group(
            backend, store=dist.PrefixStore("group", store), rank=rank, world_size=ranks, timeout=FOREVER
        )
    try:
        yield
    except BaseException:
        if device.type == "cuda" and dist.group.WORLD is not None:
            dist.group.WORLD.abort()  # nccl would wait for the ranks that are gone
        raise
    finally:
        dist.destroy_process_group()


@functools.cache
def launcher_store() -> dist.Store:
    store, _, _ = next(dist.rendezvous("env://", timeout=FOREVER))
    return store


def release_siblings() -> None:
    """Let the processes that a launcher started end, if rank 0 had no work for them."""
    store = launcher_store()
    if not store.check([WORK]):
        store.set(WORK, "null")


@contextmanager
def loopback() -> Iterator[None]:
    """Let gloo listen to this machine alone, and not look for the address of its name. A launcher may span
    machines.
    """
    names = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    key = "GLOO_SOCKET_IFNAME"
    if key in os.environ or launched() is not None or not names:
        yield
        return
    os.environ[key] = names[0]
    try:
        yield
    finally:
        del os.environ[key]


def work(rank: int, ranks: int, path: str, trusted: list[str]) -> int:
    """The part of a rank that rank 0 started; its exit code."""
    return follow_orders(dist.FileStore(path, ranks), rank, ranks, trusted)


def work_launched() -> int:
    """The part of a rank above 0 that a launcher started; its exit code."""
    place = launched()
    assert place is not None
    # Only the command line may trust packages; what comes over the network may not.
    trusted = [
        name
        for word in sys.argv
        if word.startswith("trusted=")
        for name in yaml.safe_load(word.partition("=")[2])
    ]
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own handler would wait for the store
    return follow_orders(launcher_store(), *place, trusted)


def follow_orders(store: dist.Store, rank: int, ranks: int, trusted: list[str]) -> int:
    try:
        store.wait([WORK], FOREVER)
        work = json.loads(store.get(WORK))
        if work is None:
            return 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        cfg, trained = {**work["cfg"], "trusted": trusted}, work["trained"]
        with listening(say_here, level=logging.WARNING):  # the rest rank 0 has said
            serve_rank(
                cfg, trained and {**trained, "trusted": trusted}, TaskPlan(**work["plan"]), store, rank, ranks
            )
    except LostError as error:
        say_here(f"lost the connection to another rank: {error}")
        return LOST
    except BaseException:  # noqa: BLE001 - rank 0 has to hear of everything, and says it
        traceback.print_exc()
        return 1
    return 0


def serve_rank(
    cfg: dict[str, Any],
    trained: dict[str, Any] | None,
    plan: TaskPlan,
    store: dist.Store,
    rank: int,
    ranks: int,
) -> None:
    """Build what rank 0 has built, meet it, and do as it says until it lets go. trained: as in
    `Parts.build`.
    """
    fault("rank:start")
    parts = Parts.build(cfg, rank, trained)
    executor = Executor(parts.algorithm, plan)
    store.set(ready(rank), "")
    with connected(store, rank, ranks, parts.device):
        serve(
            parts.algorithm,
            parts.source,
            executor,
            Settings.of(cfg),
            Link(rank, ranks, parts.device, LostError),
        )


def say_here(text: str) -> None:
    """A line that rank 0 puts into the log at the end, or that the launcher shows."""
    sys.stderr.write(f"{text}\n")
