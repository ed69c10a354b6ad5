"""Run folders made by hand, with every file that tables and plots read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

ABOUT = {
    "title": "MAML on Omniglot",
    "paper": "Finn et al. 2017",
    "algo": "maml",
    "data": "omniglot",
    "deviation": "3,500 steps instead of 60,000",
    "figures": [
        {"name": "5-way 1-shot", "way": 5, "shot": 1, "published": 98.7},
        {"name": "5-way 5-shot", "way": 5, "shot": 5, "published": 99.9},
        {"name": "inductive", "way": 5, "shot": 1, "published": None},
    ],
}


def make_run(
    run_dir: Path,
    *,
    accuracy: float = 0.9631,
    seed: int = 0,
    overrides: Sequence[str] = (),
    trusted: Sequence[str] = (),
) -> Path:
    """A finished run of 200 steps with three validations."""
    run_dir.mkdir(parents=True)
    lines: list[dict[str, object]] = []
    for step in range(10, 201, 10):
        lines.append(
            {"step": step, "split": "train", "loss": 1.6 * 0.985**step, "accuracy": 1 - 0.8 * 0.98**step}
        )
        lines[-1] |= {"time_data": 0.1, "time_step": 2.0}
        if step % 50 == 0:
            value = 1 - 0.8 * 0.985**step
            lines.append(
                {
                    "step": step,
                    "split": "val",
                    "loss": 1.0,
                    "accuracy": value,
                    "accuracy_ci95": 0.02,
                    "time_eval": 3.0,
                }
            )
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = {"accuracy": (accuracy, 0.0042), "accuracy_inductive": (0.91, 0.005), "loss": (0.1234, 0.01)}
    metrics |= {
        f"accuracy_step_{k}": (value, 0.005) for k, value in {10: 0.97, 0: 0.2, 1: 0.95, 2: 0.96}.items()
    }
    names = {"algo": "maml", "data": "omniglot", "model": "conv4", "experiment": "omniglot_maml"}
    results = {
        **names,
        "split": "test",
        "primary": "accuracy",
        "metrics": {name: {"mean": mean, "ci95": ci95, "std": 0.1} for name, (mean, ci95) in metrics.items()},
        "episodes": 600,
        "step": 150,
        "protocol": {
            "way": 5,
            "shot": 1,
            "query_shot": 15,
            "split": "test",
            "transductive": True,
            "checkpoint": "best",
        },
        "seed": seed,
    }
    (run_dir / "results.json").write_text(json.dumps(results))
    config = {
        "seed": seed,
        "trusted": list(trusted),
        "about": ABOUT,
        "choices": names,
        "algo": {},
        "trainer": {"outer_steps": 200},
    }
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    (run_dir / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    (run_dir / "status.json").write_text(json.dumps({"status": "finished", "exit_code": 0}))
    return run_dir


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return make_run(tmp_path / "maml_glyphs")


@pytest.fixture
def write_run() -> Callable[..., Path]:
    return make_run
