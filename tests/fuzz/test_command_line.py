"""Whole command lines of anything, in one process: documented exit codes, sentences instead of tracebacks,
nothing written outside.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import warnings
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from metalearn.build.parts import COMPILER_CACHE
from metalearn.cli import completion, verbs
from metalearn.cli import main as cli
from metalearn.config import schema
from metalearn.config.compose import compose
from metalearn.config.loader import Library, packaged_folder
from metalearn.rundir.checkpoints import CheckpointStore
from metalearn.rundir.choices import GROUPS
from tests.fuzz.cases import Watch, answered, cases, in_time, mutations
from tests.fuzz.test_documents import LINES, TREES

DOCUMENTED = {0, 1, 2, 3, 4}
KEYS = sorted(
    {
        name
        for data in ("glyphs", "sinusoid", "image_folder")
        for name in schema.known_keys(compose([f"data={data}"]))
    }
)
ODD = [
    *(
        "",
        " ",
        "=",
        "+",
        "~",
        "++",
        "null",
        "true",
        "nan",
        "-inf",
        "1e999",
        "0x10",
        "-0",
        "1_000",
        "9" * 30,
        "9" * 5000,
        "-1",
        "0",
        "3",
        "0.5",
        "'",
        '"',
        "\\",
    ),
    *(
        "[",
        "]",
        "[]",
        "{}",
        "{a:1}",
        "[1,2]",
        "[[[[[]]]]]",
        "a,b",
        "choice(1,2)",
        "range(0,3)",
        "glob(*)",
        "sort(3,1)",
        "int('x')",
        "json_str([1])",
        "a b",
    ),
    *(
        "${seed}",
        "${nothing}",
        "${oc.env:HOME}",
        "${oc.env:NO_SUCH}",
        "${a:b}",
        "${",
        "$",
        "\\${seed}",
        "???",
        "os.system",
        "metalearn.core.Source",
    ),
    *(
        "metalearn",
        "metalearn.__main__.x",
        "torch.nn.Linear",
        "../..",
        "/dev/null",
        "/",
        "~",
        "é",
        "\u202e",
        "\x1b[2J",
        "\x00",
        "\n",
        "%s",
        "#",
        "&",
        "\udcff",
    ),
]
VALUES = st.one_of(
    st.sampled_from(ODD),
    st.text(max_size=8),
    st.integers(-3, 3).map(str),
    st.lists(st.sampled_from(ODD), max_size=3).map(lambda found: f"[{','.join(found)}]"),
)
OPTIONS = sorted({option for group in GROUPS for option in Library().options(group)})
WORDS = st.one_of(
    st.builds(lambda key, value: f"{key}={value}", st.sampled_from(KEYS), VALUES),
    st.builds(
        lambda sign, key, value: f"{sign}{key}={value}",
        st.sampled_from(["", "+", "++", "~"]),
        st.sampled_from([*KEYS, *GROUPS, "hydra.launcher", "a.b"]),
        VALUES,
    ),
    st.builds(
        lambda group, option: f"{group}={option}",
        st.sampled_from([*GROUPS, "hydra/launcher", "hydra/job_logging"]),
        st.sampled_from([*OPTIONS, "x"]),
    ),
    st.builds(
        lambda key, value: f"{key}={value}",
        st.sampled_from(
            [f"hydra.{name}" for name in ("searchpath", "job.name", "run.dir", "callbacks", "verbose")]
        ),
        VALUES,
    ),
    VALUES.filter(lambda word: not word.startswith("-")),
)
TINY = [
    *(
        "device=cpu",
        "device.threads=1",
        "data=sinusoid",
        "algo=maml",
        "trainer.outer_steps=2",
        "trainer.meta_batch_size=2",
        "trainer.checkpoint_every=1",
    ),
    *("trainer.eval_every=2", "trainer.log_every=2", "eval.val_episodes=2", "eval.episodes=3"),
]
# Small numbers only: what a person asks for is done, and a million channels are asked for too.
DIALS = [key for key in KEYS if not key.endswith(("_target_", "root", "cache_dir", "partition", "run_dir"))]
SMALL = st.sampled_from(["0", "1", "2", "-1", "3.5", "null", "true", "x", "[]", "1e-3", "{}"])


@pytest.fixture(scope="session")
def watch() -> Watch:
    return Watch()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a case, with a home and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(COMPILER_CACHE, str(tmp_path / "cache" / "compiler"))  # chosen when it was imported
    monkeypatch.delenv("METALEARN_DATA", raising=False)
    monkeypatch.setattr(cli, "complain_unexpected", lambda error, run_dir: raise_again(error))
    monkeypatch.setattr("metalearn.run.session.draw_plots", lambda *parts: None)
    return tmp_path


def raise_again(error: Exception) -> int:
    raise error


def answer(words: list[str], place: Path, watch: Watch) -> int:
    """The exit code of a command line, after a look at what it said and wrote. The folders `run`, `cache` and
    `outputs` are its own.
    """
    shown, complaint = io.StringIO(), io.StringIO()
    with (
        watch.over(place / "run", place / "cache", place / "outputs", place / "link") as seen,
        in_time(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(complaint):
            code = cli.main(words)
    assert code in DOCUMENTED, code
    text = shown.getvalue() + complaint.getvalue()
    assert "Traceback" not in text
    if code:
        assert complaint.getvalue().startswith("error: "), complaint.getvalue()
    assert not seen
    return code


@cases(40)
@given(words=st.lists(WORDS, min_size=1, max_size=4))
def test_overrides_of_anything(words: list[str], place: Path, watch: Watch) -> None:
    answer(["train", *words, "--cfg", "job"], place, watch)


@cases(10)
@given(
    dials=st.dictionaries(st.sampled_from(DIALS), SMALL, max_size=3),
    data=st.sampled_from(["sinusoid", "image_folder", "synthetic_ratings"]),
)
def test_rehearsals_with_small_numbers(dials: dict[str, str], data: str, place: Path, watch: Watch) -> None:
    words = [
        *TINY,
        f"data={data}",
        *(f"{key}={value}" for key, value in dials.items()),
        "trainer.dry_run=true",
        "device.ranks=1",
    ]
    answer(["train", *words, f"run_dir={place}/run"], place, watch)
    assert not (place / "run").exists()


@cases(20)
@given(
    verb=st.sampled_from(
        [
            "ls",
            "show",
            "data",
            "resume",
            "eval",
            "completion",
            "train",
            "x",
            "--help",
            "data prepare",
            "data preview",
            "data audit",
            "ls runs",
            "report",
        ]
    ),
    words=st.lists(VALUES, max_size=3),
)
def test_verbs_with_anything_behind_them(verb: str, words: list[str], place: Path, watch: Watch) -> None:
    # `ls runs /` and `report /` would look through the whole disk
    words = [word for word in words if word not in ("/", "~")]
    answer([*verb.split(), *words, *(["--cfg", "job"] if verb == "train" else [])], place, watch)


HEADERS = [
    "",
    "# @package _global_\n",
    "# @package hydra\n",
    "defaults:\n  - override /model@_global_.model: mlp\n  - _self_\n",
    "defaults: [x]\n",
]
TEXTS = st.one_of(
    LINES, TREES.map(yaml.safe_dump), st.sampled_from(ODD).map(lambda value: f"_target_: {json.dumps(value)}")
)
OWN = [path.read_bytes() for group in GROUPS for path in sorted((packaged_folder() / group).glob("*.yaml"))]
YAMLS = st.one_of(
    st.builds(
        lambda header, text: (header + text).encode(errors="surrogatepass"), st.sampled_from(HEADERS), TEXTS
    ),
    st.binary(max_size=60),
    *(st.sampled_from(OWN).flatmap(mutations) for _ in range(2)),
)


@cases(25)
@given(
    group=st.sampled_from([*GROUPS, "hydra/launcher", "hydra/job_logging"]),
    content=YAMLS,
    verb=st.sampled_from(["ls", "show"]),
)
def test_yamls_of_anything(group: str, content: bytes, verb: str, place: Path, watch: Watch) -> None:
    folder = place / "conf"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / group).mkdir(parents=True)
    (folder / group / "mine.yaml").write_bytes(content)
    answer(["train", "--config-dir", str(folder), f"{group}=mine", "--cfg", "job"], place, watch)
    if group in GROUPS:
        answer([verb, group if verb == "ls" else f"{group}/mine", "--config-dir", str(folder)], place, watch)


SWEPT = st.sampled_from(
    [
        "range(0,2)",
        "range(3)",
        "choice(1,2)",
        "1,2",
        "glob(m*)",
        "shuffle(1,2)",
        "range(0,1,0.5)",
        "interval(0,1)",
        "a,${seed}",
        ",",
    ]
)


@cases(15)
@given(
    words=st.lists(
        st.one_of(
            WORDS, st.builds(lambda key, value: f"{key}={value}", st.sampled_from([*KEYS, *GROUPS]), SWEPT)
        ),
        max_size=3,
    )
)
def test_sweeps_of_anything(
    words: list[str], place: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metalearn.sweep.jobs.MOST_JOBS", 4)
    assert answer(["train", "-m", *words, "seed=no-number"], place, watch) == 2  # so that nothing is ever run


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("template") / "run"
    assert cli.main(["train", *TINY, f"run_dir={run_dir}"]) == 0
    return run_dir


@cases(25)
@given(data=st.data(), verb=st.sampled_from(["resume", "eval", "ls"]))
def test_damaged_run_folders(
    data: st.DataObject, verb: str, template: Path, place: Path, watch: Watch
) -> None:
    run_dir = place / "run"
    shutil.rmtree(run_dir, ignore_errors=True)
    shutil.copytree(template, run_dir)
    files = sorted(path for path in run_dir.rglob("*") if path.is_file() and "plots" not in path.parts)
    for path in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=2, unique=True)):
        if data.draw(st.integers(0, 5)):
            path.write_bytes(data.draw(mutations(path.read_bytes())))
        else:
            path.unlink()
    if (run_dir / "config.yaml").exists():  # damage may also ask for a training without an end
        steps = (run_dir / "config.yaml").read_bytes().find(b"outer_steps: 2\n") >= 0
        if not steps:
            return
    words = {
        "resume": ["resume", "run", "trainer.outer_steps=3"],
        "eval": ["eval", "run", "eval.episodes=2"],
        "ls": ["ls", "runs", "."],
    }
    answer(words[verb], place, watch)


@cases(30)
@given(
    line=st.one_of(
        st.text(max_size=20),
        st.builds(
            lambda verb, words: f"metalearn {verb} {' '.join(words)}",
            st.sampled_from([*verbs.VERBS, "x"]),
            st.lists(WORDS, max_size=2),
        ),
    )
)
def test_completion_of_anything(line: str, place: Path) -> None:
    found = answered(lambda: completion.complete(line, len(line), tuple(verbs.VERBS)))
    assert all(isinstance(word, str) for word in found)


def test_a_best_pointer_is_not_needed(template: Path) -> None:
    """The template has what the damage above is done to."""
    assert CheckpointStore(template).pointed("best") is not None
    assert {path.name for path in template.iterdir()} >= {
        "config.yaml",
        "overrides.yaml",
        "status.json",
        "env.json",
        "spec.json",
        "metrics.jsonl",
        "results.json",
    }
