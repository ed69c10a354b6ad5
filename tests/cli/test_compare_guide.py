"""The blocks of docs/guide/compare.md run as they stand, on tiny runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.cli.conftest import answer

TINY = ["model.hidden=[4]", "trainer.outer_steps=2", "trainer.meta_batch_size=2", "eval.val_episodes=2"]
TINY += ["device=cpu", "device.threads=1"]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "guide" / "compare.md"
REPLACED = {"experiment=omniglot_maml": "data=sinusoid", "trainer.outer_steps=2000": "eval.episodes=40"}


@pytest.mark.usefixtures("as_it_was")
def test_the_commands_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    [mark] = re.findall(r"^<!-- test: .* -->$", text, flags=re.MULTILINE)
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert all(word in mark and any(word in words for words in commands) for word in REPLACED)
    shown = []
    for program, verb, *rest in commands:
        words = [REPLACED.get(word, word) for word in rest]
        own = TINY if verb == "train" else []
        code, printed, complaint = answer(capsys, verb, *words, *own)
        assert (program, code) == ("metalearn", 0), complaint
        shown.append(printed)
    _, one_seed, all_seeds = shown
    assert "nothing of other seeds: it takes 3 seeds of a method" in one_seed
    assert "one_seed.png has every task as a point" in one_seed
    assert re.search(r"^A +algo\.order=1 +0, 1, 2 ", all_seeds, flags=re.MULTILINE)
    assert "over seeds and tasks\n  95% CI, t" in all_seeds
    assert (tmp_path / "compare.png").is_file()


def test_the_page_shows_what_its_commands_answered() -> None:
    text = PAGE.read_text(encoding="utf-8")
    [numbers] = re.findall(
        r"^<!-- compare: measured -->\n(.*?)^<!-- /compare -->$", text, re.DOTALL | re.MULTILINE
    )
    assert "A − B" in numbers
    assert "over seeds and tasks" in numbers
