"""One plain test for each crash that random cases and close reading have found, so that none of them comes
back.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from metalearn.cli import main as cli
from metalearn.config.compose import compose
from metalearn.errors import ConfigError
from metalearn.files import read_yaml
from metalearn.rundir.checkpoints import CheckpointStore
from metalearn.sweep import jobs


@pytest.fixture(autouse=True)
def never_unexpected(monkeypatch: pytest.MonkeyPatch) -> None:
    def again(error: Exception, run_dir: Path | None) -> int:
        raise error

    monkeypatch.setattr(cli, "complain_unexpected", again)


def test_a_folder_of_yamls_may_have_a_space_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "my conf%20ig"
    (folder / "algo").mkdir(parents=True)
    (folder / "algo" / "mine.yaml").write_text(
        "_target_: metalearn.algorithms.protonet.ProtoNet\nscale: 1.0\n"
    )
    assert compose(["algo=mine"], str(folder))["algo"]["scale"] == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "a: !!timestamp x",
        "a: !!float ''",
        "a: !!bool x",
        "a: !!int ''",
        "!!set [1]",
        "<<: 3",
        "? [1]",
        "- " * 5000,
    ],
)
def test_what_pyyaml_itself_stumbles_over_is_a_bad_document(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"\w"):
        read_yaml(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["seed=range(0,10,0)"], "cannot be swept over"),
        (["optimizer.lr=range(0,1,0.0)"], "cannot be swept over"),
        (["optimizer.lr=range(nan,1)"], "cannot be swept over"),
        (["seed=range(0,inf)"], "has more than 10000 values"),
        (["seed=shuffle(range(0,1000000000))"], "has more than 10000 values"),
        (["seed=range(0,3,-1)"], "has no value to sweep over"),
        (["seed=glob(*)"], "has no value to sweep over"),
        (
            ["seed=range(0,200)", "eval.seed=range(0,200)"],
            "these words make 40000 jobs; a sweep has at most 10000",
        ),
    ],
)
def test_a_sweep_that_leads_nowhere_or_never_ends(
    words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "-m", *words]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["-m"]])
@pytest.mark.parametrize(
    ("word", "reason"),
    [
        (f"seed={'9' * 5000}", "9999… cannot be read: Exceeds the limit"),
        (
            "data.rotations=[choice(1,2)]",
            "choice(), range() and their like cannot stand within a list or a mapping",
        ),
        ("seed={a:range(0,2)}", "choice(), range() and their like cannot stand within a list or a mapping"),
        (
            "data.rotations=[[glob(*)]]",
            "choice(), range() and their like cannot stand within a list or a mapping",
        ),
    ],
)
def test_words_that_hydra_reads_and_cannot_use(
    word: str, reason: str, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", *flags, word]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["# @package _global_\n", "[]", "5", "# @package hydra\nlauncher: 3\n", "_target_: {a: 1}"]
)
def test_a_launcher_that_is_no_mapping(text: str, tmp_path: Path) -> None:
    (tmp_path / "hydra" / "launcher").mkdir(parents=True)
    (tmp_path / "hydra" / "launcher" / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError):
        compose(["hydra/launcher=mine", "trusted=[hydra]"], str(tmp_path))


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: \x80", b"\x00"])
def test_a_yaml_that_is_no_text(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "algo").mkdir()
    (tmp_path / "algo" / "mine.yaml").write_bytes(content)
    for words in (["train", "algo=mine"], ["show", "mine"], ["ls", "algo"]):
        assert cli.main([*words, "--config-dir", str(tmp_path)]) == 2


def test_a_sweep_over_all_options_of_a_group() -> None:
    combinations, _ = jobs.expand(["algo=glob(p*)"], None)
    assert combinations == [["algo=pixel_nn"], ["algo=proto_maml"], ["algo=protonet"]]


def test_a_step_of_odd_digits_is_no_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoints" / "step-²²²²²²").mkdir(parents=True)
    assert CheckpointStore(tmp_path).steps() == []
    assert cli.main(["train", "eval.checkpoint='step-²'"]) == 2
    assert "eval.checkpoint=step-² is none of best, last, step-NUMBER" in capsys.readouterr().err


def test_a_device_of_odd_digits_is_no_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "device.name='cuda:²'"]) == 2
    assert "device.name=cuda:² is none of auto, cpu, cuda, cuda:NUMBER" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", " ", "a\0b"])
def test_a_name_that_is_no_path(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["resume", name],
        ["eval", name],
        ["ls", "runs", name],
        ["train", "--config-dir", name, "--cfg", "job"],
    ):
        assert cli.main(words) in (0, 2)
        capsys.readouterr()


def test_a_lock_that_is_a_pipe_keeps_no_listing_waiting(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"status": "running"}')
    os.mkfifo(tmp_path / ".lock")
    assert cli.main(["ls", "runs", str(tmp_path)]) == 0
