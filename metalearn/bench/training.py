"""Outer gradients and the judging of test tasks: our systems, built as `metalearn train` builds them, beside
the peers.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.algorithms.maml import MAML
from metalearn.algorithms.protonet import ProtoNet
from metalearn.bench import peers, protonet_peers
from metalearn.bench.case import Case, Options, Ranked, StepTimes, Verdict, Work, agreement, configure
from metalearn.bench.peers import Adapting, Answer, Problem, Tensors
from metalearn.bench.plain_networks import plain_network_of
from metalearn.bench.workloads import Workload
from metalearn.build.device import num_ranks
from metalearn.build.objects import build_algorithm, build_optimizer, build_schedule
from metalearn.build.parts import Parts
from metalearn.core import Algorithm, Split, Task, TaskBatch, blank_query
from metalearn.distributed.launch import open_strategy
from metalearn.engine.evaluate import EvalSpec, draw_tasks, evaluate_batch
from metalearn.engine.executor import Executor, TaskPlan
from metalearn.engine.loader import draw_batch
from metalearn.engine.plan_check import Reference, references_of, with_ordinary_norms
from metalearn.engine.settings import Settings
from metalearn.engine.strategy import SingleProcess
from metalearn.engine.update import Clip, Updater

# one query that stands between two classes may fall either way
JUDGING_TOLERANCES = {
    "loss": 1e-4,
    "accuracy": 1e-2,
}
TF32 = 2e-2  # convolutions on CUDA round their inputs to 10 bits, and second derivatives magnify that
# In bfloat16, of 8 bits, only the losses are held to something; how far off the gradient is, the table says.
LOWERED_LOSS, LOWERED_GRADIENT = 0.05, math.inf
NO_INNER_LOOP = "it differentiates inner loops, of which ProtoNet has none"
LIBRARIES: dict[str, Callable[[Problem], Adapting]] = {
    "plain": peers.plain,
    "higher": peers.higher,
    "torchopt": peers.torchopt,
    "learn2learn": peers.learn2learn,
}


class Ours:
    """A workload of ours on its device, its meta-batch drawn. stack: ends the processes of other ranks, if
    any are started.
    """

    def __init__(self, workload: Workload, options: Options, stack: ExitStack) -> None:
        self.workload, self.stack = workload, stack
        self.cfg, self.source, self.device = configure(workload, options)
        self.algorithm = with_ordinary_norms(build_algorithm(self.cfg, self.source, self.device))
        self.settings = Settings.of(self.cfg)
        split: Split = "test" if workload.kind == "evaluation" else "train"
        self.batch = draw_tasks(
            self.algorithm, self.source, split, seed=self.settings.seed, first=0, count=workload.tasks
        )
        plans = [TaskPlan("loop"), *(TaskPlan("vmap", chunk) for chunk in workload.chunks)]
        self.plans = {str(plan): plan for plan in plans}
        self.strategies: dict[str, SingleProcess] = {}

    def problem(self) -> Problem:
        """The same for the peers, with weights and gradients of their own."""
        algorithm, judging = self.algorithm, self.workload.kind == "evaluation"
        assert isinstance(algorithm, MAML)
        return Problem(
            network=plain_network_of(algorithm),
            batch=self.tensors(),
            loss=F.mse_loss if self.source.spec("train").kind == "regression" else F.cross_entropy,
            inner_lr=algorithm.inner_lr,
            steps=algorithm.eval_adaptation_steps if judging else algorithm.adaptation_steps,
            first_order=judging or algorithm.order == 1,
            head_only=algorithm.adapts != "all",
        )

    def tensors(self) -> Tensors:
        (support_x, support_y, _), (query_x, query_y, _) = self.batch.support, self.batch.query
        assert isinstance(support_x, torch.Tensor)
        assert isinstance(query_x, torch.Tensor)
        return Tensors(support_x, support_y, query_x, query_y)

    def gradient(self, plan: TaskPlan) -> Work:
        strategy = self.strategies[str(plan)] = SingleProcess(
            self.algorithm, self.source, Executor(self.algorithm, plan), self.settings
        )
        return partial(outer_gradient, self.algorithm, lambda: strategy.execute(self.batch)[0])

    def lowered(self, plan: TaskPlan) -> Work:
        """The same weights with a model that computes in bfloat16."""
        cfg = {**self.cfg, "device": {**self.cfg["device"], "precision": "bfloat16"}}
        algorithm = build_algorithm(cfg, self.source, self.device)
        algorithm.load_state_dict(self.algorithm.state_dict())
        strategy = SingleProcess(algorithm, self.source, Executor(algorithm, plan), self.settings)
        return partial(outer_gradient, algorithm, lambda: strategy.execute(self.batch)[0])

    def ranked(self, name: str, compile: bool) -> Ranked:
        """In one process for each core, with one thread each. They draw their own tasks, and are held to what
        one computes of these.
        """
        ranks = num_ranks({**self.cfg, "device": {**self.cfg["device"], "ranks": "auto"}})
        if ranks == 1:
            raise ValueError("this process may use one core or one GPU only")
        plan = self.plans[name]
        plan = replace(plan, chunk=min(plan.chunk, -(-self.workload.tasks // ranks)), compile=compile)
        cfg = {**self.cfg, "device": {**self.cfg["device"], "ranks": ranks, "threads": 1}}
        name, before = f"{ranks} ranks, {plan}", children()
        with one_thread():
            parts = Parts(self.source, self.algorithm, plan, self.device)
            strategy = self.stack.enter_context(open_strategy(cfg, parts, check=lambda: None, give_up=ignore))
            batch = draw_batch(self.algorithm, self.source, self.settings, 0)
            alone = Reference.exact(batch, strategy.executor.sums(batch))
        self.strategies[name] = strategy

        def losses() -> Tensor:
            with one_thread():
                return strategy.execute(strategy.draw(0))[0]

        work = partial(outer_gradient, self.algorithm, losses)
        return Ranked(name, work, partial(verdict, alone), sorted(children() - before))

    def split(self, name: str) -> StepTimes:
        """One outer step of this plan, by parts. It moves the weights, so that nothing else may be measured
        after it.
        """
        strategy = self.strategies[name]
        optimizer = build_optimizer(self.cfg, self.algorithm)
        assert optimizer is not None
        updater = Updater(self.algorithm, optimizer, build_schedule(self.cfg), Clip())

        numbers = itertools.count()

        def step() -> dict[str, float]:
            times = [self.now()]
            with one_thread() if "ranks" in name else nullcontext():
                batch = strategy.draw(next(numbers))
                times.append(self.now())
                losses, metrics = strategy.execute(batch)
            times.append(self.now())
            updater.update(0, losses, metrics.get("statistics"))
            times.append(self.now())
            return dict(
                zip(
                    ("data", "gradient", "update"), (b - a for a, b in itertools.pairwise(times)), strict=True
                )
            )

        return step

    def now(self) -> float:
        """Seconds, when the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def judging(self, plan: TaskPlan) -> Work:
        """Adapt to test tasks and predict, `plan.chunk` at once; loss and accuracy of each."""

        def scores(task: Task) -> Answer:
            adapted = self.algorithm.adapt(blank_query(task), steps=self.algorithm.eval_adaptation_steps)
            prediction = self.algorithm.predict(adapted, task.query.x, task.query.mask)
            objective, (_, y, mask) = self.source.spec("test").objective, task.query
            return {"loss": objective.loss(prediction, y, mask), **objective.metrics(prediction, y, mask)}

        @torch.no_grad()
        def work() -> Answer:
            parts: list[Answer] = [
                plan.map(scores, chunk) for chunk in self.batch.chunks(plan.chunk_of(self.batch.count))
            ]
            return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

        return work

    def judging_split(self, name: str) -> StepTimes:
        """A batch of a real evaluation, which tells accuracy without transduction and after fewer steps
        too.
        """
        plan, objective = self.plans[name], self.source.spec("test").objective
        asked = {"split": "test", "seed": 0, "episodes": self.workload.tasks}
        spec = EvalSpec(**(self.cfg["eval"] | asked))

        def step() -> dict[str, float]:
            start = self.now()
            batch = draw_tasks(
                self.algorithm, self.source, "test", seed=0, first=0, count=self.workload.tasks
            )
            drawn = self.now()
            for chunk in batch.chunks(plan.chunk_of(batch.count)):
                evaluate_batch(self.algorithm, objective, plan, spec, chunk)
            return {
                "data": drawn - start,
                "judging, with curve and inductive accuracy": self.now() - drawn,
            }

        return step


def training_case(workload: Workload, options: Options, stack: ExitStack) -> Case:
    """Losses (T,) and, in `.grad`, the gradient of their mean."""
    ours = Ours(workload, options, stack)
    # What `device.plan=auto` holds a plan to, every peer is held to: a meta-batch of two tasks in which
    # rounding is magnified little. The first such on which the plain loop, who rounds in other places, finds
    # the same; two who are right differ by more at a kink.
    references = [
        as_exact_as(ours.device, reference) for reference in references_of(ours.algorithm, ours.batch)
    ]
    for reference in (*references, references[0]):
        assert isinstance(reference.batch, TaskBatch)
        ours.batch = reference.batch
        found, absent = competitors(ours)
        if verdict(reference, found["plain"]()()).problem is None:
            break
    name, plan = list(ours.plans.items())[-1]  # the most tasks at once
    on_cuda = ours.device.type == "cuda"
    # A GPU is not filled by fewer tasks, each compilation takes as long, and there are minutes only.
    compiled = {name: plan} if on_cuda else ours.plans
    lowered: dict[str, Callable[[], Work]] = {
        f"{name} bfloat16{word}": partial(ours.lowered, replace(plan, compile=bool(word)))
        for word in ("", " compiled")
        if on_cuda
    }
    return Case(
        tasks=workload.tasks,
        check=partial(verdict, reference),
        plans={name: partial(ours.gradient, plan) for name, plan in ours.plans.items()},
        compiled={
            f"{name} compiled": partial(ours.gradient, replace(plan, compile=True))
            for name, plan in compiled.items()
        },
        lowered=lowered,
        check_lowered=partial(
            verdict,
            replace(
                reference,
                loss_tolerance=LOWERED_LOSS,
                tolerances=dict.fromkeys(reference.tolerances, LOWERED_GRADIENT),
            ),
        ),
        ranked=ours.ranked,
        peers=found,
        absent=absent,
        split=ours.split,
    )


def competitors(ours: Ours) -> tuple[dict[str, Callable[[], Work]], dict[str, str]]:
    """The peers on the present meta-batch, and who has nothing for it, with the reason."""
    if isinstance(ours.algorithm, ProtoNet):
        return prototype_peers(ours), dict.fromkeys(("higher", "torchopt", "torchopt vmap"), NO_INNER_LOOP)
    problem = ours.problem()
    found = {name: partial(gradient_peer, problem, peer) for name, peer in LIBRARIES.items()}
    return {**found, "torchopt vmap": partial(peers.torchopt_vmap, problem)}, {}


def as_exact_as(device: torch.device, reference: Reference) -> Reference:
    """The reference with the tolerances of this device."""
    if device.type != "cuda":
        return reference
    return replace(
        reference,
        loss_tolerance=max(reference.loss_tolerance, TF32),
        tolerances={name: max(value, TF32) for name, value in reference.tolerances.items()},
    )


def verdict(reference: Reference, answer: Answer) -> Verdict:
    """Whether losses and mean gradient are those of the reference."""
    grads, losses, _ = reference.sums
    expected = {"loss": losses, **{f"gradient of {name}": grad / len(losses) for name, grad in grads.items()}}
    tolerances = {
        "loss": reference.loss_tolerance,
        **{f"gradient of {name}": value for name, value in reference.tolerances.items()},
    }
    return agreement(answer, expected, tolerances)


def evaluation_case(workload: Workload, options: Options) -> Case:
    """Loss and accuracy (T,) of test tasks after adaptation."""
    ours = Ours(workload, options, ExitStack())
    tolerances = JUDGING_TOLERANCES
    if ours.device.type == "cuda":
        tolerances = {name: max(value, TF32) for name, value in tolerances.items()}
    expected, problem = ours.judging(TaskPlan("loop"))(), ours.problem()
    return Case(
        tasks=workload.tasks,
        check=lambda answer: agreement(answer, expected, tolerances),
        plans={name: partial(ours.judging, plan) for name, plan in ours.plans.items()},
        peers={name: partial(judging_peer, problem, peer) for name, peer in LIBRARIES.items()},
        absent={"torchopt vmap": "TorchOpt's example judges test tasks one by one, as torchopt does here"},
        split=ours.judging_split,
    )


def gradient_peer(problem: Problem, peer: Callable[[Problem], Adapting]) -> Work:
    return peers.meta_gradient(problem, peer(problem))


def judging_peer(problem: Problem, peer: Callable[[Problem], Adapting]) -> Work:
    return peers.judgement(problem, peer(problem))


def prototype_peers(ours: Ours) -> dict[str, Callable[[], Work]]:
    def build_peer(peer: Callable[[], protonet_peers.Logits]) -> Work:
        return protonet_peers.meta_gradient(plain_network_of(ours.algorithm), ours.tensors(), peer())

    return {
        "plain": partial(build_peer, protonet_peers.plain),
        "learn2learn": partial(build_peer, protonet_peers.learn2learn),
    }


def outer_gradient(algorithm: Algorithm, losses: Callable[[], Tensor]) -> Answer:
    """What `losses` returns and leaves in `.grad`."""
    return {"loss": losses(), **peers.gradients(dict(algorithm.named_parameters()))}


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def children() -> set[int]:
    """Ids of the processes that this one started and that still live; empty where the system does not
    tell.
    """
    return {
        int(pid)
        for path in Path("/proc/self/task").glob("*/children")
        for pid in path.read_text(encoding="ascii").split()
    }


def ignore(word: Any) -> None:
    """Of what other ranks say: what matters is raised."""
