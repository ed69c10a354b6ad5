"""What every algorithm keeps on every source whose tasks it declares to take. Shape letters as in `core`."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from metalearn.core import Algorithm, Examples, Source, Task, TaskBatch
from metalearn.engine.evaluate import EvalSpec, evaluate, frozen
from metalearn.engine.executor import Executor, TaskPlan, execute
from metalearn.engine.explain import pure
from metalearn.engine.fitting import misfits, obstacles
from metalearn.engine.plan_check import PlanCheck, refuse_impure, with_ordinary_norms
from metalearn.engine.update import Clip, Updater
from metalearn.errors import ConfigError
from metalearn.testing.checking import (
    Check,
    ContractError,
    NotApplicable,
    changed,
    close,
    doubled,
    gap,
    require,
    run_all,
)
from metalearn.testing.trial import LOOP, TASKS, Trial

TOLERANCE = 1e-4  # of float32 predictions that were computed in batches of other sizes
PADDING = 1e3  # what padded rows are filled with
COMPILED_STEPS = 2  # the compiler unrolls the inner steps, and the second already goes on from the first


def check_algorithm(
    algorithm: Algorithm, source: Source, *, plans: Sequence[str] = (), compiles: bool = True
) -> None:
    """Raise ContractError at the first promise that the algorithm does not keep on tasks of this source.

    plans: those to hold it to; by default the ones that it declares. compiles: False excuses one that the
    compiler cannot take.
    """
    run_all(ALGORITHM_CHECKS, Trial(algorithm, source, plans, compiles))


def refused_as_declared(method: type[Algorithm], source: Source, refusal: str) -> str:
    """The refusal, if the declarations of the method promise one for these tasks; ContractError otherwise."""
    if any(obstacles(method, source.spec(split)) for split in ("train", "val", "test")):
        return refusal
    spec = source.spec("train")
    raise ContractError(
        f"{method.__name__} refuses tasks of {spec.kind}{', ragged' if spec.ragged else ''} that it declares "
        f"to take ({refusal}); "
        "take the kind out of `kinds`, set `handles_ragged` or `trains_on`, or do not refuse them in `check`"
    )


def it_declares_to_take_these_tasks(trial: Trial) -> str:
    spec = trial.source.spec("train")
    problems = misfits(type(trial.algorithm).__name__, trial.algorithm, spec)
    require(not problems, "; ".join(problems))
    trial.algorithm.check(spec)
    return f"{spec.kind}, by {' and '.join(trial.plans or trial.algorithm.plans)}"


def one_task_gives_a_prediction_per_query_and_tensors_as_metrics(trial: Trial) -> str:
    """On one task without any mapping, where PyTorch's own errors are plainest."""
    algorithm, spec = trial.algorithm, trial.source.spec("val")
    task = tree_map(lambda leaf: leaf[0], trial.tasks(1))
    prediction = trial.predict(task, task.query, inductive=False)
    rows = spec.query_size
    require(
        prediction.ndim == 2 and len(prediction) == rows,
        f"predict returned shape {tuple(prediction.shape)} for {rows} queries; return (Q, num_outputs), one "
        "row per query",
    )
    if algorithm.trains_on != "tasks":
        return f"predictions {tuple(prediction.shape)}"
    if type(algorithm).gradient is not Algorithm.gradient:
        return f"predictions {tuple(prediction.shape)}; its `gradient` is its own"
    loss, metrics = algorithm.task_loss(tree_map(lambda leaf: leaf[0], trial.tasks(1, "train")))
    require(
        loss.ndim == 0,
        f"task_loss returned a loss of shape {tuple(loss.shape)}; return a scalar, the mean over the task's "
        "queries",
    )
    plain = [
        name
        for name, value in metrics.items()
        if name != "statistics" and not (isinstance(value, Tensor) and value.ndim == 0)
    ]
    require(
        not plain,
        f"the metrics {', '.join(plain)} are no scalar tensors; return loss.detach(), a mean, or "
        "torch.tensor(value)",
    )
    primary = trial.source.spec("train").objective.primary
    require(
        primary in metrics,
        f"task_loss returns no {primary!r} among its metrics; begin them with self.objective.metrics(…)",
    )
    return f"predictions {tuple(prediction.shape)}, metrics {', '.join(sorted(metrics))}"


def it_draws_no_random_numbers_and_keeps_nothing_between_tasks(trial: Trial) -> str:
    """Adaptation and loss are pure: what is random comes in `task.draws`, what is remembered leaves as
    statistics.
    """
    algorithm = trial.algorithm
    tasks, batch = trial.tasks(1), None if algorithm.trains_on is None else trial.batch()
    with pure(algorithm):
        trial.predictions(tasks, LOOP)
        if batch is not None:
            Executor(algorithm, LOOP).sums(batch)
    if batch is not None:
        refuse_impure(algorithm, batch)
    return "the same task gives the same again"


def loss_gradient_and_metrics_are_finite(trial: Trial) -> str:
    algorithm = trial.algorithm
    if algorithm.trains_on is None:
        names = [name for name, _ in algorithm.named_parameters()]
        require(
            not names,
            f"trains_on=None, but {', '.join(names)} are parameters; make them buffers, or train them",
        )
        return "nothing to train, and no parameter"
    losses, metrics = execute(algorithm, trial.batch(), TaskPlan("vmap", 2) if trial.vmaps else LOOP)
    require(
        losses.isfinite().all(),
        f"losses of the first meta-batch are {losses.tolist()}; lower algo.inner_lr, or check its divisions",
    )
    bad = [
        name
        for name, value in metrics.items()
        if not all(leaf.isfinite().all() for leaf in tree_leaves(value))
    ]
    require(
        not bad, f"the metrics {', '.join(bad)} are not finite on the first meta-batch; check their divisions"
    )
    grads = {name: p.grad for name, p in algorithm.named_parameters() if p.grad is not None}
    bad = [name for name, grad in grads.items() if not grad.isfinite().all()]
    require(
        not bad,
        f"gradients of {', '.join(bad)} are not finite on the first meta-batch; check roots and norms at 0",
    )
    moved = [name for name, grad in grads.items() if grad.norm() > 0]
    require(
        bool(moved),
        "every gradient is 0, so that nothing would be learned; is the prediction detached from the "
        "parameters?",
    )
    return (
        f"loss {float(losses.mean()):.4g}, {len(moved)} of {len(list(algorithm.parameters()))} parameters "
        "have a gradient"
    )


def loop_equals_vmap(trial: Trial) -> str:
    """In the precision of a run as `device.plan=auto` proves it, and to the last digits in float64."""
    if not trial.vmaps:
        declared = (
            "plans=('loop',)"
            if "vmap" not in trial.algorithm.plans
            else "only loop is asked for, as by device.plan=loop"
        )
        raise NotApplicable(f"{declared}: there is no other plan to compare with")
    algorithm = trial.algorithm
    if algorithm.trains_on is None:
        tasks = trial.tasks()
        far = gap(trial.predictions(tasks, TaskPlan("vmap")), trial.predictions(tasks, LOOP))
        require(
            far < TOLERANCE,
            f"predictions of loop and vmap are {far:.1e} apart; declare plans = ('loop',) or correct what "
            "one task does",
        )
        return f"predictions {far:.1e} apart"
    batch = trial.batch()
    problem = PlanCheck(algorithm, batch).problem(Executor(algorithm, TaskPlan("vmap")))
    require(problem is None, f"{problem} under vmap; use device.plan=loop and declare plans = ('loop',)")
    # Where no value lies so near a kink that two right gradients differ.
    exact, batch = copy.deepcopy(algorithm).double(), doubled(batch)
    loop, vmap = (Executor(exact, plan).sums(batch) for plan in (LOOP, TaskPlan("vmap")))
    require(
        close(vmap.losses, loop.losses, 1e-10),
        f"losses of loop and vmap are {gap(vmap.losses, loop.losses):.1e} apart in float64",
    )
    largest = max(float(grad.norm()) for grad in loop.grads.values())
    for name, grad in loop.grads.items():
        far = float((grad - vmap.grads[name]).norm())
        allowed = 1e-9 * float(grad.norm()) + 1e-12 * largest
        require(
            far <= allowed,
            f"the gradient of {name} differs by {far:.1e} between loop and vmap in float64; use "
            "device.plan=loop",
        )
    return "losses and every gradient"


def a_compiled_gradient_is_that_of_the_loop(trial: Trial) -> str:
    trial.must_train()
    actor = with_ordinary_norms(trial.algorithm)
    actor.adaptation_steps = min(actor.adaptation_steps, COMPILED_STEPS)
    with traced_compiler():
        try:
            problem = PlanCheck(actor, trial.batch()).problem(
                Executor(actor, TaskPlan(trial.plan.name, compile=True))
            )
        except ConfigError as refusal:
            require(not trial.compiles, str(refusal))
            raise NotApplicable(f"compiles=False: {refusal}") from refusal
    require(problem is None, f"compiled, {problem}; use device.compile=false")
    return "traced without its code generator"


@contextmanager
def traced_compiler() -> Iterator[None]:
    """torch.compile without the generation of code, which would take a minute."""
    torch.compiler.reset()
    with patch.object(torch, "compile", partial(torch.compile, backend="aot_eager")):
        yield


def evaluation_leaves_the_state_bit_equal_and_repeats_itself(trial: Trial) -> str:
    algorithm = trial.algorithm
    before = {name: value.clone() for name, value in algorithm.state_dict().items()}
    spec = EvalSpec(
        "val",
        seed=5,
        episodes=6,
        val_episodes=6,
        checkpoint="last",
        monitor=None,
        chunk=4,
        predictions=False,
        tasks=None,
        anyway=False,
        seeds=1,
        ci_target=None,
        grid=None,
    )
    summaries = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            summaries.append(evaluate(algorithm, trial.source, spec, plan=trial.plan).summary)
    require(
        summaries[0] == summaries[1],
        f"two evaluations on the same tasks give {summaries[0]} and {summaries[1]}; ask for `draws`",
    )
    written = changed(before, algorithm.state_dict())
    require(
        not written,
        f"evaluation changes {', '.join(written)}; adapt and predict must not write into the module",
    )
    primary = trial.source.spec("val").objective.primary
    require(
        {primary, f"{primary}_inductive"} <= summaries[0].keys(),
        f"evaluation reports {sorted(summaries[0])}, without {primary} twice over",
    )
    return f"{primary} {summaries[0][primary]['mean']:.3f}"


def running_averages_follow_the_training_batches(trial: Trial) -> str:
    model: Any = getattr(trial.algorithm, "model", None)
    if getattr(model, "norm_statistics", "none") != "running" or not model.norms():
        raise NotApplicable("norm_statistics is not running, or there is no norm: no averages to follow")
    trial.must_train()
    actor = copy.deepcopy(trial.algorithm)
    updater = Updater(
        actor, torch.optim.SGD(actor.parameters(), lr=0.1, fused=True), lambda step: 1.0, Clip()
    )
    losses, metrics = execute(actor, trial.batch(), trial.plan)
    require(
        "statistics" in metrics,
        "norm_statistics=running, but the metrics hold no 'statistics' for the averages to follow",
    )
    statistics = metrics["statistics"]
    updater.update(0, losses, statistics)
    for norm, (mean, var) in zip(actor.model.norms(), statistics, strict=True):  # type: ignore[operator, union-attr]
        held = close(norm.running_mean, 0.1 * mean, 1e-5) and close(norm.running_var, 0.9 + 0.1 * var, 1e-5)
        require(
            held,
            "running averages do not follow the batch's statistics by a tenth; call "
            "self.model.update_running in `update_running`",
        )
    return f"{len(statistics)} norms"


def answers_of_the_query_never_reach_the_prediction(trial: Trial) -> str:
    tasks = trial.tasks()
    other = tasks._replace(query=tasks.query._replace(y=tasks.query.y.flip(1)))
    far = gap(trial.predictions(tasks), trial.predictions(other))
    require(
        far == 0,
        f"predictions change by {far:.1e} with the answers of the query; adapt and predict may not read "
        "query.y",
    )
    return "bit-equal predictions"


def inductive_predictions_do_not_depend_on_other_queries(trial: Trial) -> str:
    tasks = trial.tasks()

    def first(task: Task, keep: int) -> Tensor:
        rows = Examples(*tree_map(lambda leaf: leaf[:keep], tuple(task.query)))
        return trial.predict(task, rows, inductive=True)[:1]

    with frozen(trial.algorithm), torch.no_grad():
        every, alone = (
            trial.plan.map(partial(first, keep=keep), tasks) for keep in (tasks.query.y.shape[1], 1)
        )
    require_inductive(alone, every, "when it is asked alone")
    return "alone as among all"


def one_class_queries_are_answered_as_among_those_of_all_classes(trial: Trial) -> str:
    """The same weights read 98% or 90% by whose statistics count, if a batch of queries of one class alone
    gives itself away.
    """
    spec = trial.source.spec("val")
    if spec.kind != "classification":
        raise NotApplicable(f"kind={spec.kind}: there are no classes")
    tasks = trial.tasks()
    every = trial.predictions(tasks, LOOP, inductive=True)
    for number in range(TASKS):
        task = tree_map(lambda leaf: leaf[number], tasks)
        rows = (task.query.y == task.query.y[task.query.mask][0]) & task.query.mask
        query = Examples(*tree_map(lambda leaf: leaf[rows], tuple(task.query)))
        alone = task._replace(query=query)
        with frozen(trial.algorithm), torch.no_grad():
            found = trial.predict(alone, query, inductive=True)
        require_inductive(found, every[number][rows], "when the queries of the other classes are left out")
    return "as among all classes"


def require_inductive(found: Tensor, expected: Tensor, when: str) -> None:
    require(
        close(found, expected, TOLERANCE),
        f"an inductive prediction changes by {gap(found, expected):.1e} {when}; let `inductive` return an "
        "adaptation "
        "whose statistics are those of the support",
    )


def permuting_the_support_changes_nothing(trial: Trial) -> str:
    if trial.algorithm.order_matters:
        raise NotApplicable("order_matters=True: the order of the rows is part of the method")
    tasks = trial.tasks()
    flipped = tasks._replace(support=Examples(*tree_map(lambda leaf: leaf.flip(1), tuple(tasks.support))))
    expected, found = trial.predictions(tasks), trial.predictions(flipped)
    require(
        close(found, expected, 1e-3),
        f"predictions change by {gap(found, expected):.1e} with the order of the support's rows; declare "
        "order_matters = True",
    )
    return "support rows in another order"


def padded_rows_never_count(trial: Trial) -> str:
    spec = trial.source.spec("train")
    if not spec.ragged:
        raise NotApplicable("ragged=False: these tasks have no padded rows")
    trial.must_train()
    batch = trial.batch()
    assert isinstance(batch, TaskBatch)
    require(
        not batch.support.mask.all(),
        "the source declares ragged tasks, but the first ones have no padded support row",
    )

    def filled(examples: Examples) -> Examples:
        def leaf(values: Tensor) -> Tensor:
            padding = ~examples.mask.reshape(examples.mask.shape + (1,) * (values.ndim - 2))
            return (
                torch.where(padding, torch.tensor(PADDING).to(values.dtype), values)
                if values.is_floating_point()
                else values
            )

        return examples._replace(x=tree_map(leaf, examples.x), y=leaf(examples.y))

    dirty = batch._replace(support=filled(batch.support), query=filled(batch.query))
    clean, other = (Executor(trial.algorithm, trial.plan).sums(tasks) for tasks in (batch, dirty))
    pairs = {"the losses": (clean.losses, other.losses)}
    pairs |= {f"the gradient of {name}": (grad, other.grads[name]) for name, grad in clean.grads.items()}
    for what, (one, two) in pairs.items():
        require(
            torch.equal(one, two),
            f"{what} changes with what padded rows hold; use the masks, or declare handles_ragged = False",
        )
    return "loss and gradient are bit-equal whatever they hold"


ALGORITHM_CHECKS: tuple[Check, ...] = (
    it_declares_to_take_these_tasks,
    one_task_gives_a_prediction_per_query_and_tensors_as_metrics,
    it_draws_no_random_numbers_and_keeps_nothing_between_tasks,
    loss_gradient_and_metrics_are_finite,
    loop_equals_vmap,
    a_compiled_gradient_is_that_of_the_loop,
    evaluation_leaves_the_state_bit_equal_and_repeats_itself,
    running_averages_follow_the_training_batches,
    answers_of_the_query_never_reach_the_prediction,
    inductive_predictions_do_not_depend_on_other_queries,
    one_class_queries_are_answered_as_among_those_of_all_classes,
    permuting_the_support_changes_nothing,
    padded_rows_never_count,
)
