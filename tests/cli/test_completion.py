"""Tab completion, driven by the line and the cursor as a shell gives them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from metalearn.cli import completion, verbs
from metalearn.config.compose import compose
from tests.cli.conftest import answer


def tab(line: str) -> list[str]:
    return completion.complete(line, len(line), tuple(verbs.VERBS))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("metalearn tr", ["train"]),
        ("metalearn --v", ["--version"]),
        ("metalearn train alg", ["algo.", "algo="]),
        ("metalearn train algo=p", ["algo=pixel_nn", "algo=proto_maml", "algo=protonet"]),
        ("metalearn train -m algo=maml,pro", ["algo=maml,proto_maml", "algo=maml,protonet"]),
        ("metalearn train algo.inner_l", ["algo.inner_loss=", "algo.inner_lr="]),
        ("metalearn train algo=protonet algo.di", ["algo.distance="]),
        ("metalearn train algo=protonet algo.inn", []),
        ("metalearn train algo=nonsense algo.inner_lr", ["algo.inner_lr="]),
        (
            "metalearn train optimizer/schedule=c",
            ["optimizer/schedule=constant", "optimizer/schedule=cosine"],
        ),
        (
            "metalearn train optimizer.schedule.",
            ["optimizer.schedule.every=", "optimizer.schedule.final=", "optimizer.schedule.gamma="],
        ),
        ("metalearn train optimizer.schedule.name=", []),
        ("metalearn train trainer.dry_run=", ["trainer.dry_run=false", "trainer.dry_run=true"]),
        ("metalearn train hydra/laun", []),
        ("metalearn train hydra/launcher=b", ["hydra/launcher=basic"]),
        ("metalearn train --c", ["--cfg", "--config-dir"]),
        ("metalearn show omniglot_pi", ["omniglot_pixel_nn"]),
        ("metalearn ls ru", ["runs"]),
        ("metalearn data pre", ["prepare", "preview"]),
        ("metalearn data prepare sin", ["sinusoid"]),
        ("metalearn data prepare omniglot data.rot", ["data.rotations=", "data.rotations_as="]),
        ("metalearn bench sinusoid an", ["anil"]),
        ("metalearn bench sinusoid --no", ["--no-compile", "--no-ranks"]),
        ("metalearn data preview glyphs --split t", ["test", "train"]),
        ("metalearn data audit sin", ["sinusoid"]),
        ("metalearn data audit sinusoid --ht", ["--html"]),
        ("metalearn data --split train pre", ["prepare", "preview"]),
        ("metalearn data --split train prepare sin", ["sinusoid"]),
        ("metalearn bench --device c", ["cpu", "cuda"]),
        ("metalearn bench --repeats 3 an", ["anil"]),
        ("metalearn train --cfg j", ["job"]),
        ("metalearn show --config-dir . omniglot_pi", ["omniglot_pixel_nn"]),
        ("metalearn completion b", ["bash"]),
        ("metalearn nonsense x", []),
    ],
)
def test_answers(line: str, expected: list[str]) -> None:
    assert tab(line) == expected


@pytest.mark.parametrize("verb", list(verbs.VERBS))
def test_every_verb_offers_the_options_that_its_help_lists(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown, _ = answer(capsys, verb, "--help")
    lines = [line.strip() for line in shown.splitlines() if line.startswith("  -")]
    listed = {word for line in lines for word in re.findall(r"(?:^|, )(--?[a-z][\w-]*)", line)}
    assert code == 0
    assert set(tab(f"metalearn {verb} -")) == listed >= {"-h", "--help"}


def test_the_cursor_cuts_the_line() -> None:
    assert completion.complete("metalearn tr algo=maml", 12, tuple(verbs.VERBS)) == ["train"]


def test_runs_and_their_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = tmp_path / "outputs" / "maml_glyphs" / "one"
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(compose(["algo=protonet"])))
    monkeypatch.chdir(tmp_path)
    assert tab("metalearn resume out") == ["outputs/maml_glyphs/one"]
    assert tab("metalearn eval outputs/maml_glyphs/one algo.dis") == ["algo.distance="]


def test_choices_of_ones_own_folder(tmp_path: Path) -> None:
    (tmp_path / "algo").mkdir()
    (tmp_path / "algo" / "mine.yaml").write_text("dial: 1\n")
    assert tab(f"metalearn train --config-dir {tmp_path} algo=mi") == ["algo=mine"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("line", "replies"),
    [
        ("metalearn tra", ["train "]),
        ("metalearn train algo=proton", ["protonet "]),
        ("metalearn train algo.dis", []),
    ],
)
def test_the_bash_script_answers(line: str, replies: list[str], tmp_path: Path) -> None:
    """Through bash itself, which splits words at `=`."""
    program = tmp_path / "metalearn"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m metalearn "$@"\n')
    program.chmod(0o755)
    test = (
        f'{completion.script("bash")}\nCOMP_LINE="{line}"; COMP_POINT={len(line)}; _metalearn; printf '
        f'"%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(
        ["bash", "-c", test],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "COMP_WORDBREAKS": "=: "},
    )
    assert [line for line in done.stdout.splitlines() if line] == replies, done.stderr


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_the_zsh_script_is_accepted() -> None:
    done = subprocess.run(
        ["zsh", "-f", "-c", "autoload -U compinit; compinit -u; " + completion.script("zsh")],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
