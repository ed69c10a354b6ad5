"""The command line as a user meets it: exit codes, one clean line per mistake, no torch before it is
needed.
"""

from __future__ import annotations

import importlib
import inspect
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from metalearn.cli import main as cli
from metalearn.cli import verbs
from metalearn.errors import DataError
from tests.cli.conftest import answer


class TestVerbs:
    def test_no_word_at_all_shows_the_verbs(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, shown, _ = answer(capsys)
        assert code == 0
        assert all(f"  {verb}" in shown for verb in verbs.VERBS)
        lines = [line for line in shown.splitlines() if line.startswith("  ")]
        assert all(line.endswith(".") for line in lines), "a sentence that goes on is cut off here"

    @pytest.mark.parametrize("verb", list(verbs.VERBS))
    def test_every_verb_has_help(self, capsys: pytest.CaptureFixture[str], verb: str) -> None:
        code, shown, complaint = answer(capsys, verb, "--help")
        assert (code, complaint) == (0, "")
        assert shown.startswith(f"usage: metalearn {verb}")

    @pytest.mark.parametrize("verb", list(verbs.VERBS))
    def test_every_example_of_a_help_is_a_command_of_its_own(self, verb: str) -> None:
        """A line that is not indented is a command, with at most a remark after it, or else of prose that
        ends in a sentence.
        """
        module = importlib.import_module(verbs.VERBS[verb])
        first, *paragraphs = (inspect.getdoc(module.run) or "").split("\n\n")
        assert first.endswith(".")
        commands = 0
        for paragraph in paragraphs:
            lines = [line for line in paragraph.splitlines() if not line.startswith(" ")]
            if not lines[0].startswith(("metalearn ", 'eval "$(metalearn ')):
                assert paragraph.endswith("."), paragraph
                continue
            for line in lines:
                command, _, _ = line.removeprefix('eval "$(').partition("   ")
                words = shlex.split(command.removesuffix(')"'))
                assert words[:2] == ["metalearn", verb], line
                assert line.count("metalearn ") == 1, line
                cli.parser_of(verb, module).parse_intermixed_args(words[2:])
                commands += 1
        assert commands > 0

    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            (["trian"], "error: metalearn trian does not exist; did you mean metalearn train?\n"),
            (["evaluate"], "error: metalearn evaluate does not exist; did you mean metalearn eval?\n"),
            (
                ["resume"],
                "error: the following arguments are required: RUN_DIR; see: metalearn resume --help\n",
            ),
            (["train", "--foo"], "error: unrecognized arguments: --foo; see: metalearn train --help\n"),
            (
                ["ls", "alg"],
                "error: metalearn ls alg: alg is none of algo, data, model, optimizer, "
                "optimizer/schedule, optimizer/clip, device, logger, experiment, runs; "
                "did you mean algo?\n",
            ),
            (["show", "mamll"], "error: there is no config mamll; did you mean algo/maml?\n"),
            (
                ["data", "prepair", "glyphs"],
                "error: metalearn data prepair does not exist; did you mean prepare?\n",
            ),
            (["completion", "tcsh"], "error: there is no completion for tcsh; choose from bash, zsh\n"),
        ],
    )
    def test_a_mistake_is_one_line_and_exit_2(
        self, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
    ) -> None:
        assert answer(capsys, *words) == (2, "", sentence)

    def test_a_verb_that_is_nothing_like_ours_gets_the_list(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert (
            answer(capsys, "xyzzy")[2]
            == f"error: metalearn xyzzy does not exist; choose from {', '.join(verbs.VERBS)}\n"
        )


class TestListings:
    def test_ls_names_every_choice_with_paper_and_figure(self, capsys: pytest.CaptureFixture[str]) -> None:
        _, shown, _ = answer(capsys, "ls", "algo")
        [line] = [line for line in shown.splitlines() if line.startswith("maml ")]
        assert "arXiv:1703.03400" in line
        assert "98.7" in line

    def test_show_keeps_comments_and_resolves_references(self, capsys: pytest.CaptureFixture[str]) -> None:
        _, shown, _ = answer(capsys, "show", "device/cpu")
        assert "plan: vmap # loop: one task at a time; vmap: chunk tasks at once" in shown
        assert "${" not in shown

    def test_show_of_a_recipe_gives_the_whole_configuration(self, capsys: pytest.CaptureFixture[str]) -> None:
        _, shown, _ = answer(capsys, "show", "omniglot_maml")
        assert "arXiv:1703.03400" in shown
        assert "partition_seed:" in shown

    def test_show_of_an_ambiguous_name_lists_them(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "maml.yaml").write_text("x: 1\n")
        code, _, complaint = answer(capsys, "show", "maml", "--config-dir", str(tmp_path))
        assert (code, complaint) == (
            2,
            "error: maml is the name of several configs; choose one: algo/maml, model/maml\n",
        )

    def test_no_runs_yet_says_how_to_start_one(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        assert answer(capsys, "ls", "runs", str(tmp_path)) == (
            0,
            f"no runs under {tmp_path}; start one with: metalearn train\n",
            "",
        )


class TestData:
    def test_preview_draws_and_prepare_names_the_content(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        png = tmp_path / "new" / "a.png"
        assert answer(capsys, "data", "preview", "sinusoid", "--png", str(png)) == (0, f"{png}\n", "")
        assert png.read_bytes()[1:4] == b"PNG"
        code, shown, _ = answer(capsys, "data", "prepare", "sinusoid", "data.shot=3")
        assert code == 0
        assert "shot 3" in shown
        assert "data=sinusoid is ready (sha256 " in shown

    def test_a_png_that_cannot_be_written(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        code, _, complaint = answer(capsys, "data", "preview", "sinusoid", "--png", f"{tmp_path}/file/a.png")
        assert code == 2
        assert complaint.startswith(f"error: --png {tmp_path}/file/a.png cannot be written: ")


class TestTheLastLineOfDefence:
    def test_an_exit_code_follows_the_kind_of_error(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(_: object) -> int:
            raise DataError("no data")

        monkeypatch.setattr("metalearn.cli.ls.run", fail)
        assert answer(capsys, "ls") == (3, "", "error: no data\n")

    def test_a_mistake_of_ours_is_one_line_and_its_traceback_goes_into_the_log(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        def fail(args: object) -> int:
            args.run_dir = tmp_path  # type: ignore[attr-defined]
            raise KeyError("boom")

        monkeypatch.setattr("metalearn.cli.ls.run", fail)
        code, _, complaint = answer(capsys, "ls")
        assert (code, complaint) == (1, f"error: KeyError: 'boom' (details in {tmp_path}/train.log)\n")
        assert "Traceback" in (tmp_path / "train.log").read_text()

    def test_ctrl_c_is_130(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        def stop(_: object) -> int:
            raise KeyboardInterrupt

        monkeypatch.setattr("metalearn.cli.ls.run", stop)
        assert answer(capsys, "ls") == (130, "", "interrupted\n")


def test_quick_answers_do_not_import_torch() -> None:
    lines = [
        ["--help"],
        ["train", "--help"],
        ["ls"],
        ["show", "maml"],
        ["train", "algo.iner_lr=1"],
        ["train", "-m", "seed=0,-1"],
    ]
    lines += [["completion", "bash"], ["resume", "/"], ["train", "--cfg", "job"], ["ls", "runs", "/nowhere"]]
    code = f"import sys; from metalearn.cli.main import main\nfor words in {lines!r}:\n    main(words)\n"
    code += "    assert 'torch' not in sys.modules, words"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("word", "reason"), [(".", "is a folder"), ("x.txt", "does not end in .png")])
def test_a_picture_is_a_png(capsys: pytest.CaptureFixture[str], word: str, reason: str) -> None:
    sentence = f"error: --png {word} {reason}; name a file, as in --png episodes.png\n"
    assert answer(capsys, "data", "preview", "glyphs", "--png", word) == (2, "", sentence)


def test_a_reader_that_leaves_makes_no_noise() -> None:
    command = f"{sys.executable} -m metalearn show omniglot_maml | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["# experiment=omniglot_maml", "0"]
    assert done.stderr == ""


def test_the_module_equals_the_command_and_a_stray_file_does_not_shadow_a_library(tmp_path: Path) -> None:
    (tmp_path / "yaml.py").write_text("raise SystemExit('shadowed')\n")
    done = subprocess.run(
        [sys.executable, "-m", "metalearn", "ls", "model"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "conv4" in done.stdout


def test_a_class_of_somebody_else_that_wants_to_exit_with_words_is_answered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "dispatch", lambda words, args: sys.exit("no server"))
    assert cli.main(["ls"]) == 1
    assert capsys.readouterr().err == "error: no server\n"
