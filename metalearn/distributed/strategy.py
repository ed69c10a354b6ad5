"""Several processes compute one run: rank 0 is the run, the others hold nothing and do what it orders.

Only rank 0 has an optimizer, a folder and a say. For a step it sends the weights, every rank differentiates
its own block of the meta-batch, and one reduction brings gradients, losses and metrics to rank 0. So
resuming, stopping and refusing what is not finite are those of one process, and a rank that dies takes
nothing with it. Orders travel over gloo and tensors over gloo or, between GPUs, nccl. All of it is numbers:
nothing is unpickled; what an evaluation asks is JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from metalearn.core import Algorithm, Batch, Metrics, Source
from metalearn.engine.batching import Batching
from metalearn.engine.evaluate import EvalSpec, Evaluation, evaluate_batches, limited, until_enough
from metalearn.engine.executor import Executor, Sums
from metalearn.engine.loader import TaskLoader
from metalearn.engine.locked import judged_source
from metalearn.engine.settings import Settings, share_of
from metalearn.engine.strategy import SingleProcess
from metalearn.errors import MetalearnError
from metalearn.fault_injection import fault

END, STEP, EVALUATE, WIDTH, CHUNK = range(5)  # kinds of orders
ORDER_SIZE = 4


class RankError(MetalearnError):
    """Another rank is gone. details: what it printed, its traceback if it had one."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class LostError(MetalearnError):
    """Another rank cannot be reached any more; what a rank above 0 raises."""

    def __init__(self, error: RuntimeError) -> None:
        super().__init__(reason(error))


def reason(error: RuntimeError) -> str:
    """What gloo says, without the place in its source before it and the guesses behind it."""
    line = str(error).strip().partition("\n")[0]
    return re.sub(r"^\[\S*\] ", "", line).partition(". This is typically")[0]


class Link:
    """What this process and the other ranks exchange; torch's default process group must exist.

    lost: makes the error to raise of a failure to reach another rank.
    """

    def __init__(
        self, rank: int, ranks: int, device: torch.device, lost: Callable[[RuntimeError], MetalearnError]
    ) -> None:
        self.rank, self.ranks, self.device, self.lost = rank, ranks, device, lost

    def order(self, *numbers: int) -> list[int]:
        """Rank 0 says what to do next; the others call it without arguments and are told."""
        words = torch.zeros(ORDER_SIZE, dtype=torch.int64)
        words[: len(numbers)] = torch.tensor(numbers, dtype=torch.int64)
        with self._reaching():
            dist.broadcast(words, 0)
        return words.tolist()

    def say(self, text: str, size: int) -> str:
        """Give a text of so many bytes to all; what the others say is not heard."""
        letters = torch.zeros(size, dtype=torch.uint8)
        if self.rank == 0:
            letters.copy_(torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8))
        with self._reaching():
            dist.broadcast(letters, 0)
        return bytes(letters.tolist()).decode()

    def spread(self, algorithm: Algorithm) -> None:
        """Give the parameters and buffers of rank 0 to all, as bytes, so that every type arrives as it is."""
        tensors = [tensor.detach() for tensor in (*algorithm.parameters(), *algorithm.buffers())]
        if not tensors:
            return
        flat = torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in tensors])
        with self._reaching():
            dist.broadcast(flat, 0)
        if self.rank > 0:
            pieces = flat.split([tensor.numel() * tensor.element_size() for tensor in tensors])
            for tensor, piece in zip(tensors, pieces, strict=True):
                # cloned: a view needs its alignment
                tensor.copy_(piece.clone().view(tensor.dtype).view(tensor.shape))

    def sum(self, flat: Tensor) -> None:
        """Add up over all ranks, in place, on rank 0; what the others hold afterwards means nothing."""
        with self._reaching():
            dist.reduce(flat, 0)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise self.lost(error) from error


class MultiProcess(SingleProcess):
    """Rank 0 and those who follow its orders with `serve`.

    require_all: raises when another rank is gone; called between batches of an evaluation, which may be long.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        source: Source,
        executor: Executor,
        settings: Settings,
        link: Link,
        require_all: Callable[[], None],
    ) -> None:
        super().__init__(algorithm, source, executor, settings, ranks=link.ranks)
        self.link, self.require_all = link, require_all
        self.chunks_then = torch.tensor([executor.plan.chunk] * link.ranks)
        self.share = share_of(link.rank, link.ranks, settings.meta_batch_size)
        if algorithm.trains_on != "examples":
            self.loader = TaskLoader(algorithm, source, settings, self.share)

    def draw(self, step: int) -> Batch:
        """A flat minibatch is never split, so that rank 0 takes all of it and gives no order."""
        if self.algorithm.trains_on != "examples":
            self.link.order(STEP, step)
            self.link.spread(self.algorithm)
        return super().draw(step)

    def execute(self, batch: Batch) -> tuple[Tensor, Metrics]:
        if self.algorithm.trains_on == "examples":
            return super().execute(batch)
        sums = self.executor.sums(batch)
        sums, self.chunks_then = pool(
            sums, self.share, self.settings.meta_batch_size, self.link, self.executor.plan.chunk
        )
        return sums.losses, self.executor.write(sums)

    def chunks(self) -> list[int]:
        return [int(chunk) for chunk in self.chunks_then.tolist()]

    def take_back(self, chunks: Sequence[int]) -> None:
        chunks = chunks if len(chunks) == self.link.ranks else [self.asked.chunk] * self.link.ranks
        super().take_back(chunks[:1])
        for rank, chunk in enumerate(chunks[1:], 1):
            self.link.order(CHUNK, rank, chunk)
        self.chunks_then = torch.tensor(chunks)

    def evaluate(self, spec: EvalSpec, on_batch: Callable[[int], None] | None = None) -> Evaluation:
        source = judged_source(self.source, spec.tasks, spec.split)
        spec = limited(spec, source)
        size = self.size(spec)

        def between(done: int) -> None:
            self.require_all()
            if on_batch is not None:
                on_batch(done)

        def find(tasks: range) -> dict[str, Tensor]:
            asked = json.dumps([asdict(spec), tasks.start, tasks.stop]).encode()
            self.link.order(EVALUATE, size.unit, size.held, len(asked))
            self.link.say(asked.decode(), len(asked))
            self.link.spread(self.algorithm)
            return pool_scores(self.algorithm, source, spec, size, self.executor, self.link, tasks, between)

        return until_enough(find, source, spec)

    def dismiss(self) -> None:
        """Order the end."""
        self.link.order(END)


def serve(algorithm: Algorithm, source: Source, executor: Executor, settings: Settings, link: Link) -> None:
    """The life of every other rank: do what rank 0 orders, until it orders the end."""
    share = share_of(link.rank, link.ranks, settings.meta_batch_size)
    loader = TaskLoader(algorithm, source, settings, share)
    sizes: dict[EvalSpec, Batching] = {}  # what was halved stays so
    while (order := link.order())[0] != END:
        if order[0] == CHUNK:
            if order[1] == link.rank:
                executor.plan = replace(executor.plan, chunk=order[2])
        elif order[0] == STEP:
            link.spread(algorithm)
            batch = loader.draw(order[1])
            fault("rank:step")
            sums = executor.sums(batch)
            pool(sums, share, settings.meta_batch_size, link, executor.plan.chunk)
        else:
            _, unit, held, letters = order
            asked, first, last = json.loads(link.say("", letters))
            spec, tasks = EvalSpec(**asked), range(first, last)
            link.spread(algorithm)
            judged = judged_source(source, spec.tasks, spec.split)
            size = sizes.setdefault(spec, Batching(unit, held, alone=executor.plan.name == "loop"))
            size.unit, size.held = min(size.unit, unit), held
            pool_scores(algorithm, judged, spec, size, executor, link, tasks)


def pool(sums: Sums, share: range, count: int, link: Link, chunk: int = 0) -> tuple[Sums, Tensor]:
    """On rank 0: the sums over all ranks, and the chunk of each. count: tasks of the meta-batch, of which
    `share` are this rank's.
    """
    losses, chunks = sums.losses.new_zeros(count), sums.losses.new_zeros(link.ranks, dtype=torch.float64)
    losses[share.start : share.stop] = sums.losses
    chunks[link.rank] = chunk
    leaves, form = tree_flatten((sums._replace(losses=losses), chunks))
    flat = torch.cat([leaf.reshape(-1).double() for leaf in leaves])
    link.sum(flat)
    pieces = flat.split([leaf.numel() for leaf in leaves])
    pooled: tuple[Sums, Tensor] = tree_unflatten(
        [piece.view(leaf.shape) for piece, leaf in zip(pieces, leaves, strict=True)], form
    )
    return pooled[0]._replace(losses=pooled[0].losses.to(losses.dtype)), pooled[1]


def pool_scores(
    algorithm: Algorithm,
    source: Source,
    spec: EvalSpec,
    size: Batching,
    executor: Executor,
    link: Link,
    tasks: range,
    on_batch: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """What `evaluate_batch` found of these E tasks in their order, (E, …) each, on rank 0, bit for bit; empty
    elsewhere.
    """
    turn = {"rank": link.rank, "ranks": link.ranks}
    own = list(
        evaluate_batches(algorithm, source, spec, executor.plan, size, tasks, **turn, on_batch=on_batch)
    )
    # A rank without a batch cannot know how many numbers there are of a task; rank 0 always has the first
    # one.
    sizes = [values[0].numel() for values in own[0][1].values()] if own else []
    _, width, *_ = link.order(WIDTH, sum(sizes)) if link.rank == 0 else link.order()
    bits = torch.zeros(len(tasks), width, dtype=torch.int64, device=link.device)
    for first, found in own:
        rows = torch.cat([values.double().reshape(len(values), -1) for values in found.values()], dim=1)
        bits[first - tasks.start :][: len(rows)] = rows.view(torch.int64)
    link.sum(bits)  # of whole numbers, all but one of them 0: the sum of floats would turn -0 into 0
    if link.rank > 0:
        return {}
    columns = zip(bits.view(torch.float64).split(sizes, dim=1), own[0][1].items(), strict=True)
    return {name: column.reshape(-1, *like.shape[1:]).to(like.dtype) for column, (name, like) in columns}
