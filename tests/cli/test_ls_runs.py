"""`metalearn ls runs` over folders that are written by hand: the folders are the registry."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.conftest import answer
from tests.report import many_runs

BARE = (
    "eval_test.csv",
    "predictions_test.safetensors",
    "worst_test.png",
    "breakdown_test.csv",
    "metrics.jsonl",
)


def config(algo: str, seed: int, inner_lr: float = 0.4) -> dict[str, Any]:
    names = {"algo": algo, "data": "omniglot", "model": "conv4", "optimizer": "adam", "experiment": None}
    return {"choices": names, "algo": {"inner_lr": inner_lr}, "data": {"way": 5}, "seed": seed}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("outputs")
    for algo, shift in (("maml", 0.0), ("protonet", 0.02)):
        for seed in (0, 1):
            many_runs.write(root / algo / str(seed), config(algo, seed), algo=algo, shift=shift, drop=BARE)
    many_runs.write(root / "wide", config("maml", 0, 0.01), shift=-0.2, way=20, drop=BARE)
    (root / "going").mkdir()
    (root / "going" / "config.yaml").write_text(yaml.safe_dump(config("reptile", 7)))
    (root / "going" / "status.json").write_text('{"status": "preempted"}')
    return root


def listed(capsys: pytest.CaptureFixture[str], outputs: Path, *words: str) -> list[str]:
    """The folders that a command names, in its order."""
    code, shown, complaint = answer(capsys, "ls", "runs", str(outputs), *words)
    assert (code, complaint) == (0, "")
    return [line.split()[0].removeprefix(f"{outputs}/") for line in shown.splitlines()[2:]]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["algo=maml"], ["maml/0", "maml/1", "wide"]),
        (["algo=maml", "way=5"], ["maml/0", "maml/1"]),
        (["seed=1,7"], ["going", "maml/1", "protonet/1"]),
        (["state=preempted"], ["going"]),
        (["algo=reptile"], ["going"]),
        (["algo.inner_lr=1e-2"], ["wide"]),
        (["transductive=true", "way=20"], ["wide"]),
        (["optimizer=adam", "seed=7"], ["going"]),
        (["experiment=null", "seed=0"], ["maml/0", "protonet/0", "wide"]),
    ],
)
def test_every_key_filters(
    words: list[str], found: list[str], outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert listed(capsys, outputs, *words) == found


def test_the_best_of_each_protocol_and_the_order_of_results(
    outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ranked = listed(capsys, outputs, "--sort", "result")
    assert {name.partition("/")[0] for name in ranked[:2]} == {"protonet"}
    assert ranked[-2:] == ["wide", "going"]
    assert set(listed(capsys, outputs, "--best")) == {ranked[0], "wide"}
    assert listed(capsys, outputs, "--sort", "algo.inner_lr")[0] == "wide"


def test_a_program_gets_numbers_and_the_whole_protocol(
    outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, shown, _ = answer(capsys, "ls", "runs", str(outputs), "--json", "data.way=5", "seed=0,7")
    going, *ended = json.loads(shown)
    assert (going["mean"], going["state"], going["seed"], going["keys"]) == (
        None,
        "preempted",
        7,
        {"data.way": 5, "seed": 7},
    )
    assert [one["protocol"]["way"] for one in ended] == [5, 5, 20]
    assert all(0 < one["mean"] < 1 and one["ci95"] > 0 and one["episodes"] == 200 for one in ended)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["alog=maml"], "alog: none of the 6 runs has such a key; did you mean algo?"),
        (["data.wya=5"], "data.wya: none of the 6 runs has such a key; did you mean data.way?"),
        (
            ["--sort", "algo.iner_lr"],
            "algo.iner_lr: none of the 6 runs has such a key; did you mean algo.inner_lr?",
        ),
    ],
)
def test_a_key_that_no_run_has_is_refused_with_the_closest(
    words: list[str], complaint: str, outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer(capsys, "ls", "runs", str(outputs), *words) == (2, "", f"error: {complaint}\n")


def test_other_mistakes_have_a_sentence(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "ls", "runs", "a", "b")[2].startswith(
        "error: metalearn ls runs looks into one folder, not into a and b; "
    )
    assert answer(capsys, "ls", "algo", "way=5") == (
        2,
        "",
        "error: way=5 is for runs; list them with: metalearn ls runs\n",
    )
    assert answer(capsys, "ls", "runs", str(outputs), "algo=none") == (
        0,
        f"none of the 6 runs under {outputs} has algo=none\n",
        "",
    )


def test_a_run_inside_a_run_is_none(
    outputs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = many_runs.write(tmp_path / "run", config("maml", 0), drop=BARE)
    many_runs.write(run / "evals" / "test_data.way=20", config("maml", 0), way=20, drop=BARE)
    assert listed(capsys, tmp_path) == ["run"]


@pytest.mark.slow
def test_ten_thousand_runs_are_listed_in_three_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many_runs.main(tmp_path, 10_000, bare=True)
    for words, limit in (([], 3.0), (["algo=maml", "way=5"], 3.0), (["optimizer.lr=0.002"], 12.0)):
        spent = []
        for _ in range(3):  # others on the machine only ever add to it
            start = time.perf_counter()
            assert len(listed(capsys, tmp_path, *words)) > 10
            spent.append(time.perf_counter() - start)
        assert min(spent) < limit, (words, spent)
