"""What is measured: each workload as the configuration that our own command line would be given. No torch
here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from metalearn.config.schema import closest
from metalearn.errors import ConfigError


@dataclass(frozen=True)
class Workload:
    """One row of the benchmark.

    group: the word of the command line that chooses it; a row can be chosen by its own name too.
    tasks: tasks per repeat. chunks: tasks at once under vmap, besides `loop`.
    """

    name: str
    group: str
    title: str
    kind: Literal["training", "evaluation", "sampler", "scaling"]
    overrides: tuple[str, ...]
    tasks: int
    chunks: tuple[int, ...] = ()


IMAGES = ("data=glyphs", "data.image_size=28", "model=conv4")
# PyTorch's own initialisation: gradients of ordinary size, so that equality means something.
MAML = ("algo=maml", "algo.inner_lr=0.1", "algo.adaptation_steps=1", "model.init=default")
SINUSOID = (
    "data=sinusoid",
    *MAML,
    "model.hidden=[40,40]",
    "model.head_init=default",
    "data.shot=10",
    "data.query_shot=10",
)
STRIDE2 = (*IMAGES, *MAML, "model.downsample=stride", "data.way=5", "data.shot=1", "data.query_shot=1")
MAXPOOL = (*IMAGES, *MAML, "model.downsample=pool", "data.way=5", "data.shot=1", "data.query_shot=15")
TWENTY_WAY = (*STRIDE2, "data.way=20", "algo.adaptation_steps=5")
ANIL = (*STRIDE2, "algo.adapts=[head]")
PROTONET = (
    *IMAGES,
    "algo=protonet",
    "model.downsample=pool",
    "model.init=default",
    "data.way=20",
    "data.shot=1",
    "data.query_shot=5",
)
EPISODES = (*IMAGES, "data.rotations=[train]", "data.way=5", "data.shot=1", "data.query_shot=15")

WORKLOADS = (
    Workload(
        "sinusoid", "sinusoid", "MAML, MLP 40-40, K=10, 1 step", "training", SINUSOID, tasks=25, chunks=(25,)
    ),
    Workload(
        "stride2_5w1s",
        "stride2_5w1s",
        "MAML, stride-2 conv4-64, 5-way 1-shot, 1 query, 1 step",
        "training",
        STRIDE2,
        32,
        (8, 16, 32),
    ),
    Workload(
        "maxpool_5w1s_15q",
        "maxpool_5w1s_15q",
        "MAML, max-pool conv4-64, 5-way 1-shot, 15 queries, 1 step",
        "training",
        MAXPOOL,
        tasks=8,
        chunks=(2, 4),
    ),
    Workload(
        "stride2_20w1s_5steps",
        "stride2_20w1s_5steps",
        "MAML, stride-2 conv4-64, 20-way 1-shot, 1 query, 5 steps",
        "training",
        TWENTY_WAY,
        tasks=16,
        chunks=(4, 8),
    ),
    Workload(
        "anil", "anil", "ANIL, otherwise as stride2_5w1s", "training", ANIL, tasks=32, chunks=(8, 16, 32)
    ),
    Workload(
        "protonet",
        "protonet",
        "ProtoNet, max-pool conv4-64, 20-way 1-shot, 5 queries",
        "training",
        PROTONET,
        tasks=8,
        chunks=(2, 4),
    ),
    Workload(
        "first_order_stride2_5w1s",
        "first_order",
        "first-order MAML, otherwise as stride2_5w1s",
        "training",
        (*STRIDE2, "algo.order=1"),
        tasks=32,
        chunks=(8, 16, 32),
    ),
    Workload(
        "first_order_maxpool_5w1s_15q",
        "first_order",
        "first-order MAML, otherwise as maxpool_5w1s_15q",
        "training",
        (*MAXPOOL, "algo.order=1"),
        tasks=8,
        chunks=(2, 4),
    ),
    Workload(
        "sampler_5w1s_15q",
        "sampler",
        "episodes with their pixels, 5-way 1-shot, 15 queries",
        "sampler",
        EPISODES,
        tasks=32,
    ),
    Workload(
        "sampler_20w5s_15q",
        "sampler",
        "episodes with their pixels, 20-way 5-shot, 15 queries",
        "sampler",
        (*EPISODES, "data.way=20", "data.shot=5"),
        tasks=16,
    ),
    Workload(
        "evaluation",
        "evaluation",
        "MAML's test tasks, stride-2 conv4-64, 5-way 1-shot, 15 queries, 10 steps",
        "evaluation",
        (*STRIDE2, "data.query_shot=15", "algo.eval_adaptation_steps=10"),
        tasks=50,
        chunks=(10, 50),
    ),
    Workload(
        "scaling",
        "scaling",
        "stride2_5w1s with 4 to 64 tasks and with 1 to 10 steps, as a plot",
        "scaling",
        (),
        tasks=0,
    ),
)


def choose(words: Iterable[str]) -> list[Workload]:
    """The workloads that these words name, in the order of the list; all of them if there is no word.

    Raises ConfigError with one sentence per unknown word.
    """
    words, known = list(words), names()
    problems = []
    for word in words:
        if word not in known:
            meant = closest(word, known)
            problems.append(
                f"metalearn bench {word}: there is no such workload; "
                + (f"did you mean {meant}?" if meant else f"choose from {', '.join(known)}")
            )
    if problems:
        raise ConfigError(problems)
    return [workload for workload in WORKLOADS if not words or {workload.group, workload.name} & set(words)]


def names() -> list[str]:
    """Every word that `choose` knows."""
    return list(dict.fromkeys(name for workload in WORKLOADS for name in (workload.group, workload.name)))


def listing() -> str:
    """One line per workload, for `--help`."""
    lines = ["workloads (a group of several by the name in brackets):"]
    for workload in WORKLOADS:
        group = f" [{workload.group}]" if workload.group != workload.name else ""
        count = (
            f"; {workload.tasks} {'episodes' if workload.kind == 'sampler' else 'tasks'}"
            if workload.tasks
            else ""
        )
        lines.append(f"  {workload.name}{group}: {workload.title}{count}")
    return "\n".join(lines)
