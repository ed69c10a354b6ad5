"""Short runs whose losses are known to the last digits: which they are, how they run, and where their losses
are kept.

`losses.json` holds, by minor version of torch, the machine that wrote them and the losses of every run.
`declarations.json` holds what every method says of itself. Both are written by `scripts/update_golden` and
read by `test_golden.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from metalearn.config.compose import compose
from metalearn.run import session
from metalearn.run.train import train
from metalearn.rundir.environment import hardware
from tests.plugins import class_of

CONF = Path(__file__).parents[2] / "conf"
STORE = Path(__file__).parent / "losses.json"
DECLARATIONS = STORE.with_name("declarations.json")
DECLARED = ("kinds", "handles_ragged", "order_matters", "plans", "trains_on")
STEPS = 20
# Between the kernels of one processor (AVX512, AVX2, none, with MKL's and oneDNN's) the losses differ by at
# most 4e-12.
TOLERANCE = 1e-9
WAY_OUT = "if numbers were meant to change, run scripts/update_golden and say so in CHANGELOG.md"
SAME = ("torch", "cpu", "capability")  # where all of these are equal, so is every bit
COMMON = [
    *(
        "device=cpu",
        "device.precision=float64",
        "device.threads=1",
        f"trainer.outer_steps={STEPS}",
        "trainer.log_every=1",
    ),
    *(
        "trainer.meta_batch_size=4",
        "trainer.batch_size=16",
        f"trainer.eval_every={STEPS}",
        "eval.val_episodes=2",
        f"eval.episodes={STEPS}",
    ),
]
IMAGES = [
    "data=glyphs",
    "data.num_classes=48",
    "data.num_drawings=6",
    "data.image_size=16",
    "data.way=3",
    "data.query_shot=3",
    "model.channels=8",
]
# Runs by the name of their algorithm and what else they are for. One that is not here is run on IMAGES.
CASES: dict[str, list[str]] = {
    "baseline": [*IMAGES, "algo.eval_adaptation_steps=2"],
    "reptile": [*IMAGES, "algo.eval_adaptation_steps=5"],
    "maml": [*IMAGES, "algo.inner_lr=0.1", "device.plan=vmap", "device.chunk=2"],
    "maml, one task at a time": [*IMAGES, "algo.inner_lr=0.1", "device.plan=loop"],
    "maml, first order, max-pool": [*IMAGES, "algo.order=1", "algo.inner_lr=0.1", "model.downsample=pool"],
    "maml, sinusoid": ["data=sinusoid", "algo.inner_lr=0.01"],
    "maml, ratings": [
        "data=synthetic_ratings",
        "data.num_users=100",
        "data.num_items=40",
        "algo.inner_lr=0.01",
    ],
}


def cases() -> dict[str, list[str]]:
    """Overrides of every run by its name; each algorithm of conf/ has at least one."""
    found = {path.stem: IMAGES for path in sorted((CONF / "algo").glob("[!_]*.yaml"))} | CASES
    return {name: [f"algo={name.partition(',')[0]}", *words, *COMMON] for name, words in found.items()}


def declarations() -> dict[str, dict[str, Any]]:
    """What every method of conf/ takes, in JSON values: tests are chosen and tasks refused by that, so that a
    wrong word would leave out the tests that find it.
    """
    names = [path.stem for path in sorted((CONF / "algo").glob("[!_]*.yaml"))]
    found = {name: {word: getattr(class_of(name), word) for word in DECLARED} for name in names}
    in_json: dict[str, dict[str, Any]] = json.loads(json.dumps(found))
    return in_json


def declarations_stored() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = (
        json.loads(DECLARATIONS.read_text(encoding="utf-8")) if DECLARATIONS.exists() else {}
    )
    return found


def losses(words: list[str], folder: Path) -> list[float]:
    """The loss of every outer step, or of every test task for a method that does not train. folder: an empty
    one.
    """
    cfg = compose([*words, *([f"data.cache_dir={folder / 'cache'}"] if "data=glyphs" in words else [])])
    with as_it_was(), contextlib.redirect_stdout(io.StringIO()):
        train(cfg, words, folder / "run")
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = [line["loss"] for line in lines if line["split"] == "train"]
    return trained or column(folder / "run" / "eval_test.csv", "loss")


def column(path: Path, name: str) -> list[float]:
    header, *rows = [line.split(",") for line in path.read_text().splitlines()]
    return [float(row[header.index(name)]) for row in rows]


@contextlib.contextmanager
def as_it_was() -> Iterator[None]:
    """Within it no plots are drawn; after it, type and threads are those from before."""
    dtype, threads, draw_plots = torch.get_default_dtype(), torch.get_num_threads(), session.draw_plots
    session.draw_plots = lambda *parts: None
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
        session.draw_plots = draw_plots


def machine() -> dict[str, Any]:
    """What the last bits depend on."""
    cpu = f"{hardware(torch.device('cpu'))['cpu']}, {make()}"
    return {"torch": torch.__version__, "cpu": cpu, "capability": torch.backends.cpu.get_cpu_capability()}


def make() -> str:
    """Which processor it is: many that differ, by their caches say, give themselves the same name in a
    virtual machine.
    """
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").partition("\n\n")[0].splitlines() if path.exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    known = [
        f"{key} {facts[key]}" for key in ("cpu family", "model", "stepping", "cache size") if key in facts
    ]
    flags = hashlib.sha256(facts.get("flags", "").encode()).hexdigest()[:8]
    return ", ".join([*known, f"flags {flags}"])


def minor() -> str:
    """2.14 of torch 2.14.1+cpu."""
    return ".".join(re.findall(r"\d+", torch.__version__)[:2])


def stored() -> dict[str, Any]:
    """{minor: {…machine(), "losses": {name: […]}}}"""
    found: dict[str, Any] = json.loads(STORE.read_text(encoding="utf-8")) if STORE.exists() else {}
    return found


def updated(store: dict[str, Any], found: dict[str, list[float]]) -> dict[str, Any]:
    """The store with the losses that this machine found; those of other versions of torch stay."""
    return dict(
        sorted(
            {**store, minor(): {**machine(), "losses": found}}.items(),
            key=lambda entry: [int(n) for n in entry[0].split(".")],
        )
    )


def gap(value: float, expected: float) -> float:
    """Relative difference."""
    return abs(value - expected) / max(abs(expected), 1e-300)


def complaint(name: str, found: list[float], expected: list[float], *, exact: bool) -> str | None:
    """What is wrong with the losses of a run, None if they are those that are stored. exact: to the last
    bit.
    """
    if len(found) != len(expected):
        return f"{name}: {len(found)} losses, {len(expected)} are stored; {WAY_OUT}"
    allowed = 0.0 if exact else TOLERANCE
    for step, (value, stored) in enumerate(zip(found, expected, strict=True), 1):
        if not gap(value, stored) <= allowed:
            reason = (
                "this machine is like the one that stored it, so that every bit counts"
                if exact
                else f"at most {allowed:.0e}"
            )
            values = f"loss {value!r}, stored {stored!r}, relative difference {gap(value, stored):.1e}"
            return f"{name}, step {step}: {values} ({reason}); {WAY_OUT}"
    return None
