"""Folders as many runs would leave them, for pages and lists of many:

python -m tests.report.many_runs FOLDER 100            with everything that a report reads
python -m tests.report.many_runs FOLDER 10000 --bare   what `metalearn ls runs` reads
"""

from __future__ import annotations

import hashlib
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from safetensors.numpy import save_file

from metalearn.config.compose import compose

WAY, QUERIES, NUM_CLASSES = 5, 5, 40  # queries of a task, classes to draw from
FIGURES = [{"name": "5-way 1-shot", "way": 5, "shot": 1, "published": 98.7}]
ABOUT = {"paper": "Finn et al. 2017, table 1", "algo": "maml", "data": "omniglot", "figures": FIGURES}
MAY_DIFFER = ["adaptation_steps", "norm_statistics", "checkpoint", "preprocessing"]


def config_of(words: list[str], seed: int) -> dict[str, Any]:
    """config.yaml of a run. words: overrides that compose without data on the disk."""
    return {**compose(words), "seed": seed}


def write(
    folder: Path,
    config: dict[str, Any],
    *,
    algo: str = "maml",
    shift: float = 0.0,
    way: int = WAY,
    tasks: int = 200,
    words: tuple[str, ...] = ("data=omniglot",),
    experiment: str | None = None,
    drop: tuple[str, ...] = (),
) -> Path:
    """A finished run on the same tasks as all others of its way. shift: its method's mean over 0.9. drop:
    files that it lacks, as an older run would.
    """
    folder.mkdir(parents=True)
    seed = config["seed"]
    task = np.random.default_rng(way).normal(0, 0.05, tasks)
    own = np.random.default_rng(zlib.crc32(repr((algo, seed, shift)).encode()))
    scores = np.clip(0.9 + shift + task + own.normal(0, 0.03, tasks) + own.normal(0, 0.001), 0, 1)
    config = {**config, "about": ABOUT} if experiment else config
    files: dict[str, str] = {
        "config.yaml": yaml.dump(
            config, sort_keys=False, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper)
        ),
        "overrides.yaml": yaml.safe_dump([f"algo={algo}", *words, f"seed={seed}"]),
        "status.json": json.dumps({"status": "finished", "exit_code": 0, "pid": 1}),
        "env.json": json.dumps(environment(folder)),
        "metrics.jsonl": "".join(json.dumps(line) + "\n" for line in lines(float(scores.mean()), own)),
        "eval_test.csv": table(scores, way),
        "breakdown_test.csv": breakdown(own),
        "results.json": json.dumps(results(algo, seed, scores, way, experiment), indent=2),
    }
    for name, content in files.items():
        if name not in drop:
            (folder / name).write_text(content)
    if "predictions_test.safetensors" not in drop:
        write_predictions(folder / "predictions_test.safetensors", scores, own)
    if "worst_test.png" not in drop:
        pixels = own.integers(0, 255, (24, 60, 3), np.uint8).repeat(20, 0).repeat(20, 1)
        Image.fromarray(pixels).save(folder / "worst_test.png")
    return folder


def results(algo: str, seed: int, scores: Any, way: int, experiment: str | None = None) -> dict[str, Any]:
    mean, std, count = float(scores.mean()), float(scores.std(ddof=1)), len(scores)
    half = 1.96 * std / count**0.5
    values = {"loss": 1 - mean, "accuracy": mean, "accuracy_inductive": mean - 0.03}
    values |= {"ece": 0.04, "nll": 0.31, "brier": 0.12}
    values |= {f"accuracy_step_{step}": mean * (1 - 0.7 * 0.3**step) for step in range(6)}
    confidence = (np.arange(15) + 0.5) / 15
    percent = {"percent": True, "unit": ""}
    return {
        "algo": algo,
        "data": "omniglot",
        "model": "conv4",
        "experiment": experiment,
        "split": "test",
        "primary": "accuracy",
        "metrics": {name: {"mean": value, "ci95": half, "std": std} for name, value in values.items()},
        "formats": {
            name: {**percent, "higher_is_better": True}
            if name.startswith("accuracy")
            else {"percent": False, "unit": "nats", "higher_is_better": False}
            for name in values
        },
        "reliability": {
            "count": list(range(15)),
            "confidence": confidence.tolist(),
            "accuracy": (confidence**1.2).tolist(),
        },
        "episodes": count,
        "step": 900,
        "trains_on": "tasks",
        "tasks_sha256": hashlib.sha256(str(way).encode()).hexdigest(),
        "may_differ": MAY_DIFFER,
        "protocol": {
            "data": "omniglot",
            "split": "test",
            "way": way,
            "shot": 1,
            "query_shot": 1,
            "partition": "random",
            "transductive": True,
            "adaptation_steps": 3,
            "checkpoint": "best",
            "norm_statistics": "transductive",
            "data_sha256": "d" * 64,
            "preprocessing": {"resize": 28},
        },
        "seed": seed,
    }


def environment(folder: Path) -> dict[str, Any]:
    return {
        "versions": {"python": "3.11.7", "metalearn-runner": "0.2.0", "torch": "2.14.1"},
        "hardware": {"system": "Linux x86_64", "cpu": "A processor", "num_cpus": 2, "device": "cpu"},
        "git_sha": "61490f18d2497052e3c93c60aa1290d79837362f",
        "git_dirty": False,
        "data_sha256": "d" * 64,
        "argv": ["metalearn", "train", f"run_dir={folder}"],
    }


def lines(final: float, own: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for step in range(10, 1001, 10):
        value = final * (1 - 0.75 * 0.994**step) + float(own.normal(0, 0.006))
        found.append({"step": step, "split": "train", "loss": 1 - value, "accuracy": value, "time_step": 0.8})
        if step % 50 == 0:
            found.append(
                {"step": step, "split": "val", "accuracy": value, "accuracy_ci95": 0.01, "time_eval": 0.5}
            )
    return found


def table(scores: Any, way: int) -> str:
    rows = [
        f"{number},{hashlib.sha256(f'{way}/{number}'.encode()).hexdigest()},{score:.6f}"
        for number, score in enumerate(scores)
    ]
    return "\n".join(["task_id,task_sha256,accuracy", *rows, ""])


def breakdown(own: Any) -> str:
    rows = [["kind", "name", "tasks", "queries", "mean", "ci95"]]
    rows += [
        [kind, f"{kind} {number}", "20", "100", f"{own.uniform(0.6, 1):.4f}", "0.0400"]
        for kind, count in (("class", NUM_CLASSES), ("alphabet", 6))
        for number in range(count)
    ]
    return "\n".join(map(",".join, rows)) + "\n"


def write_predictions(path: Path, scores: Any, own: Any) -> None:
    count = len(scores)
    classes = np.stack([own.permutation(NUM_CLASSES)[:WAY] for _ in range(count)]).astype(np.int32)
    label = np.tile(np.arange(WAY), count).astype(np.int64)
    task = np.arange(count, dtype=np.int32).repeat(QUERIES)
    logits = own.normal(0, 1, (count * QUERIES, WAY)) + 2.5 * np.eye(WAY)[label]
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    tensors = {
        "task": task,
        "row": np.tile(np.arange(QUERIES), count).astype(np.int32),
        "label": label,
        "probability": probability.astype(np.float16),
        "classes": classes,
    }
    names = [f"Alphabet_{number // 8}/character{number % 8:02d}" for number in range(NUM_CLASSES)]
    save_file(tensors, path, {"classes": json.dumps(names)})


def main(root: Path, count: int, bare: bool) -> None:
    """Every fifth seed of 20 settings of three methods; bare: without what only a report reads."""
    drop = ("eval_test.csv", "predictions_test.safetensors", "worst_test.png", "breakdown_test.csv")
    configs = {
        algo: config_of([f"algo={algo}", "data=omniglot"], 0) for algo in ("maml", "protonet", "reptile")
    }
    for number in range(count):
        algo = list(configs)[number // 5 % 3]
        config = {**configs[algo], "seed": number % 5}
        config["optimizer"] = {**config["optimizer"], "lr": round(0.001 * (1 + number // 15), 4)}
        write(
            root / f"{algo}_omniglot" / f"2026-11-27_{number:06d}",
            config,
            algo=algo,
            shift=-0.004 * (number // 5 % 20),
            way=5 if number % 10 < 5 else 20,
            drop=(*drop, "metrics.jsonl") if bare else (),
            tasks=20 if bare else 600,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), "--bare" in sys.argv)
