"""Run folders that an older metalearn wrote, before some key existed: what is filled in, what is refused, and
who is told.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from metalearn.algorithms.baseline import Baseline
from metalearn.build.instantiate import BASES, arguments_of, resolve
from metalearn.config.compatibility import BEFORE, CONSTRUCTED, FREE_EVAL, GAINED, VALIDATION, science
from metalearn.config.compose import compose
from metalearn.config.saved import primary_values, read_saved
from metalearn.data.omniglot import Omniglot
from metalearn.errors import ConfigError
from metalearn.models.mlp import MLP
from metalearn.run import resume as resuming
from metalearn.run.evaluate import evaluate_run
from metalearn.rundir.checkpoint_files import METADATA
from metalearn.rundir.checkpoints import CheckpointStore
from metalearn.sweep import jobs
from tests.reliability import harness
from tests.reliability.harness import KILLED, QUICK, TINY, finish, resume, train
from tests.security.test_run_folders import sign

NOTE = (
    "is older than trainer.keep_best, device.deterministic; going on with what was done before: "
    "trainer.keep_best=1, device.deterministic=false"
)


def forget(run_dir: Path, *names: str) -> Path:
    """Make the folder one of a version that did not know these keys, GROUP.KEY each."""
    cfg = yaml.safe_load((run_dir / "config.yaml").read_text())
    for name in names:
        group, _, key = name.partition(".")
        del cfg[group][key]
    (run_dir / "config.yaml").write_text(yaml.safe_dump(cfg, sort_keys=False))
    store = CheckpointStore(run_dir)
    for folder in map(store.path, store.steps()):
        facts = json.loads((folder / METADATA).read_text())
        facts["config"] = {key: value for key, value in facts["config"].items() if key not in names}
        (folder / METADATA).write_text(json.dumps(facts))
        sign(folder)
    return run_dir


# Keys of train.yaml, devices and loggers in the first version that wrote run folders.
FIRST = {
    *("seed", "run_dir", "trusted"),
    *(f"trainer.{key}" for key in ("outer_steps", "meta_batch_size", "batch_size", "on_nan", "dry_run")),
    *(f"trainer.{key}" for key in ("log_every", "eval_every", "checkpoint_every", "keep_last", "patience")),
    *(f"eval.{key}" for key in ("episodes", "val_episodes", "split", "seed", "checkpoint", "batch_size")),
    *(f"device.{key}" for key in ("name", "plan", "chunk", "threads", "compile", "ranks", "precision")),
    *(f"optimizer.schedule.{key}" for key in ("name", "final", "gamma", "every")),
    *("optimizer.clip.norm", "optimizer.clip.value"),
}


def test_every_newer_key_says_what_was_done_before_it() -> None:
    newer = primary_values().keys() - FIRST
    assert newer == BEFORE.keys(), "a key that older runs lack needs its entry in compatibility.BEFORE"


def test_every_key_of_an_evaluation_is_free_or_what_records_follow_from() -> None:
    keys = [name for name in primary_values() if name.startswith("eval.")]
    assert sorted(keys) == sorted([*FREE_EVAL, *VALIDATION]), "say in one of the two what a new key is"
    assert "eval.fresh" in science({"eval": {"fresh": 1}}), "until then a resumed run must keep it"


def test_a_key_that_a_class_gains_does_in_older_runs_what_was_done_before(
    killed: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = compose([*TINY, *QUICK])
    before = jobs.identity({**cfg, "algo": {key: cfg["algo"][key] for key in cfg["algo"] if key != "scale"}})
    forget(killed, "algo.scale")
    monkeypatch.delitem(CONSTRUCTED, "metalearn.algorithms.protonet.ProtoNet")  # as of a key that is new
    with pytest.raises(ConfigError, match="missing a required.* argument: 'scale'"):
        resuming.resume(killed, [])
    monkeypatch.setitem(GAINED, "metalearn.algorithms.protonet.ProtoNet", {"scale": 10.0})
    assert jobs.identity(cfg) == before
    assert finish(resume(killed)) == 0
    assert (killed / "results.json").read_bytes() == (reference / "results.json").read_bytes()
    assert (
        "older than algo.scale; going on with what was done before: algo.scale=10.0\n"
        in (killed / "train.log").read_text()
    )


def before_the_ranges(run_dir: Path) -> Path:
    """Make the folder one of the version whose YAMLs had no ranges, and said among the arguments of a method
    what it suits.
    """
    cfg = yaml.safe_load((run_dir / "config.yaml").read_text())
    about = cfg["algo"].pop("about")
    suits = about.pop("suits")
    cfg["algo"] = {"about": {key: about[key] for key in about if key != "ranges"}, **cfg["algo"], **suits}
    for group in ("data", "model", "optimizer"):
        del cfg[group]["about"]
    for group in ("optimizer/schedule", "optimizer/clip"):
        del cfg["choices"][group]
    (run_dir / "config.yaml").write_text(yaml.safe_dump(cfg, sort_keys=False))
    store = CheckpointStore(run_dir)
    for folder in map(store.path, store.steps()):
        facts = json.loads((folder / METADATA).read_text())
        facts["config"] |= {f"algo.{key}": value for key, value in suits.items()}
        (folder / METADATA).write_text(json.dumps(facts))
        sign(folder)
    return run_dir


def test_a_run_from_before_the_ranges_goes_on_exactly_and_is_judged(killed: Path, reference: Path) -> None:
    before_the_ranges(killed)
    with pytest.raises(ConfigError, match="^data.way=1 must be at least 2$"):
        evaluate_run(killed, ["data.way=1"])
    with pytest.raises(
        ConfigError, match="^algo.plan=loop: algo.plan is now device.plan; write device.plan=loop"
    ):
        resuming.resume(killed, ["algo.plan=loop"])
    assert finish(resume(killed)) == 0
    for name in ("results.json", "eval_test.csv"):
        assert (killed / name).read_bytes() == (reference / name).read_bytes()
    assert harness.metrics(killed) == harness.metrics(reference)
    assert evaluate_run(killed, ["eval.episodes=4"]) == 0


def test_what_a_yaml_left_to_constructors_is_what_their_defaults_were(killed: Path, reference: Path) -> None:
    left = {
        *("data.rotations_as", "data.shot", "data.rotations", "data.invert", "data.seed", "data.partition"),
        *(
            "model.downsample",
            "model.readout",
            "model.init",
            "model.head_init",
            "algo.distance",
            "algo.scale",
        ),
    }
    before_the_ranges(forget(killed, *left))
    assert finish(resume(killed)) == 0
    for name in ("results.json", "eval_test.csv"):
        assert (killed / name).read_bytes() == (reference / name).read_bytes()
    assert harness.metrics(killed) == harness.metrics(reference)
    [note] = [line for line in (killed / "train.log").read_text().splitlines() if "is older than" in line]
    assert "data.shot=1" in note
    assert "algo.scale=10.0" in note


def test_the_defaults_of_then_are_those_of_then_and_not_of_the_yamls(tmp_path: Path) -> None:
    cfg = compose(["data=omniglot", "algo=baseline", "model=mlp", "trusted=[]"])
    for group in ("algo", "data", "model"):
        cfg[group] = {"_target_": cfg[group]["_target_"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(cfg))
    saved = read_saved(tmp_path)
    assert saved["data"]["query_shot"] == 15
    assert saved["data"]["rotations"] == ["train", "val", "test"]
    assert saved["model"]["hidden"] == [40, 40]
    assert saved["algo"]["eval_adaptation_steps"] == 100
    for group, cls in (("algo", Baseline), ("data", Omniglot), ("model", MLP)):
        given = {name for name in arguments_of(cls).parameters if name not in ("device", "model", "spec")}
        assert given - {"input_spec", "channels"} <= saved[group].keys()


@pytest.mark.parametrize("name", [*CONSTRUCTED, *GAINED])
def test_what_is_filled_in_is_an_argument_of_its_class(name: str) -> None:
    cls = resolve("_target_", name, tuple(BASES.values()), [])
    assert {**CONSTRUCTED, **GAINED}[name].keys() <= arguments_of(cls).parameters.keys()


@pytest.fixture
def killed(cfg: dict[str, Any], reference: Path, tmp_path: Path) -> Path:
    """A run that died after its first checkpoints."""
    assert finish(train(cfg, tmp_path / "run"), "step:end@5") == KILLED
    return tmp_path / "run"


def test_a_run_older_than_a_key_goes_on_with_its_default_and_says_so_once(
    killed: Path, reference: Path
) -> None:
    forget(killed, "device.deterministic", "trainer.keep_best")
    assert finish(resume(killed)) == 0
    for name in ("results.json", "eval_test.csv"):
        assert (killed / name).read_bytes() == (reference / name).read_bytes()
    assert harness.metrics(killed) == harness.metrics(reference)
    assert read_saved(killed)["device"]["deterministic"] is False
    assert finish(resume(killed, "trainer.outer_steps=7")) == 0
    assert (killed / "train.log").read_text().count(f"config.yaml {NOTE}\n") == 1


def test_an_older_run_is_judged_with_the_defaults_and_says_so(
    reference: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="metalearn")
    older = forget(
        Path(shutil.copytree(reference, tmp_path / "run")), "device.deterministic", "trainer.keep_best"
    )
    before = (older / "config.yaml").read_bytes()
    assert evaluate_run(older, []) == 0
    assert [text.endswith(f"config.yaml {NOTE}") for text in caplog.messages].count(True) == 1
    assert (older / "config.yaml").read_bytes() == before


def test_a_value_that_an_older_run_cannot_have_had_is_refused(killed: Path) -> None:
    forget(killed, "trainer.keep_best")
    cfg = yaml.safe_load((killed / "config.yaml").read_text())
    del cfg["trainer"]["meta_batch_size"]  # damaged, not older: every run has had it
    (killed / "config.yaml").write_text(yaml.safe_dump(cfg))
    with pytest.raises(ConfigError, match="config.yaml is damaged: trainer.meta_batch_size is missing"):
        resuming.resume(killed, [])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "optimizer.clip",
            "optimizer.clip.norm is missing, and results follow from it, so that no default can stand in for "
            "it",
        ),
        ("optimizer.schedule", "optimizer.schedule.name is missing, and results"),
        ("device.plan", "device.plan is missing"),  # its default is what the algorithm's own YAML says
        ("eval", "eval is missing"),
        ("seed", "seed is missing"),
    ],
)
def test_what_results_follow_from_is_never_filled_in(
    reference: Path, tmp_path: Path, name: str, reason: str
) -> None:
    cfg = yaml.safe_load((reference / "config.yaml").read_text())
    group, _, key = name.partition(".")
    del (cfg[group] if key else cfg)[key or group]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(cfg))
    with pytest.raises(ConfigError, match=f"config.yaml is damaged: {reason}.*; restore it from a backup"):
        read_saved(tmp_path)


def test_a_group_that_is_newer_than_the_run_is_filled_in_too(killed: Path, reference: Path) -> None:
    cfg = yaml.safe_load((killed / "config.yaml").read_text())
    del cfg["logger"]
    (killed / "config.yaml").write_text(yaml.safe_dump(cfg, sort_keys=False))
    assert finish(resume(killed)) == 0
    harness.assert_same_end(killed, reference)
    default = "logger._target_=metalearn.loggers.Logger"
    assert (
        f"is older than logger._target_; going on with what was done before: {default}\n"
        in (killed / "train.log").read_text()
    )
    assert read_saved(killed)["logger"] == {"_target_": "metalearn.loggers.Logger"}


def test_a_method_s_own_key_that_its_checkpoint_never_knew_is_refused(killed: Path) -> None:
    cfg = yaml.safe_load((killed / "config.yaml").read_text())
    store = CheckpointStore(killed)
    forget(killed, "algo.scale")
    cfg["algo"]["scale"] = 5.0  # the checkpoint was trained with what the constructor filled in, 10.0
    (killed / "config.yaml").write_text(yaml.safe_dump(cfg))
    assert "algo.scale" not in store.load(store.steps()[-1]).metadata["config"]
    with pytest.raises(ConfigError, match=r"but:\n  algo.scale: None -> 5.0\n"):
        resuming.resume(killed, [])


def test_a_new_key_makes_no_new_jobs_of_a_sweep() -> None:
    cfg = compose(["seed=1"])
    older = compose(["seed=1"])
    del older["device"]["deterministic"], older["trainer"]["keep_best"]
    assert jobs.identity(older) == jobs.identity(cfg)
    for word in ("device.deterministic=true", "trainer.keep_best=2", "seed=0", "optimizer.clip.norm=1"):
        assert jobs.identity(compose(["seed=1", word])) != jobs.identity(cfg)


def test_a_finished_job_of_an_older_sweep_is_finished(tmp_path: Path, cache: Path) -> None:
    words = [*TINY, f"data.cache_dir={cache}", *QUICK]
    [job], _ = jobs.planned(words, None, tmp_path)
    job.folder.mkdir()
    (job.folder / "status.json").write_text('{"status": "finished"}')
    (job.folder / "config.yaml").write_text(yaml.safe_dump(job.cfg))
    (job.folder / "checkpoints").mkdir()
    # The first is a key of any run; the second had another value than its default before it was a key.
    forget(job.folder, "device.deterministic", "trainer.shutdown_timeout_s")
    [again], _ = jobs.planned(words, None, tmp_path)
    assert (again.folder, again.state, again.why_skipped()) == (job.folder, "finished", "finished, skipped")


def test_a_run_with_a_key_that_was_renamed_is_evaluated_and_resumed_without_a_word(
    killed: Path, reference: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="metalearn")
    cfg = yaml.safe_load((killed / "config.yaml").read_text())
    cfg["eval"]["batch_size"] = cfg["eval"].pop("chunk")
    (killed / "config.yaml").write_text(yaml.safe_dump(cfg))
    assert read_saved(killed)["eval"]["chunk"] == 3
    assert evaluate_run(killed, ["eval.episodes=2"]) == 0
    assert not any("is older than" in text for text in caplog.messages)
    assert finish(resume(killed)) == 0
    assert (killed / "results.json").read_bytes() == (reference / "results.json").read_bytes()
    with pytest.raises(
        ConfigError, match=r"^eval.batch_size=2: eval.batch_size is now eval.chunk; write eval.chunk=2$"
    ):
        evaluate_run(killed, ["eval.batch_size=2"])


def test_a_key_of_a_later_version_is_named(reference: Path, tmp_path: Path) -> None:
    later = Path(shutil.copytree(reference, tmp_path / "run"))
    cfg = yaml.safe_load((later / "config.yaml").read_text())
    cfg["eval"]["chunks"] = 1
    (later / "config.yaml").write_text(yaml.safe_dump(cfg))
    with pytest.raises(
        ConfigError, match=r"eval.chunks is not a key of this version; did you mean eval.chunk\?"
    ):
        read_saved(later)
