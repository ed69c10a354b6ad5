"""The blocks of docs/guide/compare.md run as they stand, on tiny runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.cli.conftest import answer
from tests.cli.test_runs import TINY

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guide" / "compare.md"
REPLACED = {"experiment=omniglot_maml": "data=glyphs", "trainer.outer_steps=2000": "eval.episodes=40"}


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
    tiny = [word for word in TINY if not word.startswith("eval.episodes")]
    shown = []
    for program, verb, *rest in commands:
        words = [REPLACED.get(word, word) for word in rest]
        own = [*tiny, "data.way=2"] if verb == "train" else []
        code, printed, complaint = answer(capsys, verb, *words, *own)
        assert (program, code) == ("metalearn", 0), complaint
        shown.append(printed)
    _, one_seed, all_seeds = shown
    assert "nothing of other seeds: it takes 3 seeds of a method" in one_seed
    assert "one_seed.png has every task as a point" in one_seed
    assert "A       algo.order=2  0, 1, 2" in re.sub(r"^A +", "A       ", all_seeds, flags=re.MULTILINE)
    assert (tmp_path / "compare.png").is_file()
