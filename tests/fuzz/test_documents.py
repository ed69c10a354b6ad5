"""YAML, JSON and CSV that somebody else wrote: parsed or refused in a sentence, never more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from metalearn import files
from metalearn.build import specification
from metalearn.config.compose import compose, reopen
from metalearn.config.interpolation import reference_problems
from metalearn.config.saved import read_saved
from metalearn.data.partition import file_partition
from metalearn.files import MAX_NODES
from metalearn.rundir.reader import read_metrics, read_results
from tests.fuzz.cases import answered, cases, in_time, mutations

SNIPPETS = st.sampled_from(
    [
        *(
            "a: 1",
            "&a [*a]",
            "*a",
            "<<: *a",
            "!!python/object/apply:os.system ['x']",
            "!!binary '='",
            "!!set {a}",
            "? [1]",
            "- - -",
            "'",
            '"',
        ),
        *(
            "{a: {b: [",
            "]}",
            "%YAML 9.9",
            "---",
            "...",
            "\t",
            "!!int 0x",
            "!!float .",
            "2024-99-99",
            "1:99",
            "? ",
            "| ",
            "> ",
            "\ufeff",
            "\x85",
        ),
        *(
            "${a}",
            "${oc.env:HOME}",
            "a: ${b}",
            "~",
            "null",
            "0o7",
            "1_000",
            ".inf",
            "1e999",
            "@",
            "`",
            "#",
            "key: [*x, *y]",
            "&x 1",
            "&y {a: *x}",
        ),
    ]
)
LINES = st.lists(st.one_of(SNIPPETS, st.text(max_size=20)), max_size=12).map("\n".join)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=15),
    st.sampled_from(["${a}", "${oc.env:X}", "???"]),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def saved() -> dict[str, Any]:
    return compose(["algo=protonet"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("documents")


@cases(250)
@given(text=LINES)
def test_a_yaml_is_read_or_refused(text: str, folder: Path) -> None:
    (folder / "x.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    with in_time():
        try:
            found = files.read_yaml(folder / "x.yaml")
        except ValueError as error:
            assert str(error)
        else:
            assert len(repr(found)) < 100 * MAX_NODES


@cases(150)
@given(tree=st.dictionaries(st.text(max_size=8), TREES, max_size=5))
def test_references_are_judged_whatever_they_say(tree: dict[str, Any]) -> None:
    with in_time():
        assert all(isinstance(problem, str) for problem in reference_problems(tree))


@cases(150)
@given(data=st.data())
def test_a_damaged_configuration_of_a_run_is_read_or_refused(
    data: st.DataObject, saved: dict[str, Any], folder: Path
) -> None:
    content = data.draw(mutations(yaml.safe_dump(saved).encode()))
    (folder / "config.yaml").write_bytes(content)
    answered(lambda: reopen(read_saved(folder), []))


@cases(100)
@given(data=st.data(), value=TREES)
def test_a_changed_value_of_a_run_s_configuration_is_read_or_refused(
    data: st.DataObject, value: Any, saved: dict[str, Any], folder: Path
) -> None:
    changed: dict[str, Any] = json.loads(json.dumps(saved))
    place = changed
    while data.draw(st.booleans()) and (
        inner := [key for key, entry in place.items() if isinstance(entry, dict) and entry]
    ):
        place = place[data.draw(st.sampled_from(inner))]
    place[data.draw(st.sampled_from([*place, "new", "", "_target_", "_args_"]))] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(changed))
    answered(
        lambda: reopen(
            read_saved(folder),
            data.draw(st.sampled_from([[], ["eval.episodes=3"], ["device=cpu"], ["trusted=[x]"]])),
        )
    )


@cases(150)
@given(
    text=st.one_of(LINES, st.text(max_size=60), TREES.map(lambda tree: json.dumps(tree))),
    suffix=st.sampled_from([".csv", ".json", ".yaml"]),
)
def test_a_partition_is_read_or_refused(text: str, suffix: str, folder: Path) -> None:
    path = folder / f"partition{suffix}"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    answered(lambda: file_partition(path, ["a", "b", "c"]))


@cases(100)
@given(
    rows=st.lists(
        st.lists(
            st.one_of(
                st.sampled_from(["a", "b", "train", "test", "val", "class", "split", '"', ""]),
                st.text(max_size=5),
            ),
            max_size=4,
        ),
        max_size=6,
    )
)
def test_a_table_is_a_partition_or_refused(rows: list[list[str]], folder: Path) -> None:
    path = folder / "table.csv"
    path.write_text(
        "\n".join(["class,split", *(",".join(row) for row in rows)]), encoding="utf-8", errors="surrogatepass"
    )
    answered(lambda: file_partition(path, ["a", "b", "c"]))


SPECIFICATION = {
    "format_version": 1,
    "task": {
        "kind": "classification",
        "objective": {"_target_": "metalearn.objectives.Classification"},
        "num_outputs": 5,
        "input_spec": {"shape": [1, 14, 14], "num_categories": None},
        "support_size": 5,
        "query_size": 25,
        "max_way": 5,
    },
    "preprocessing": {"resize": "area", "invert": True},
}


@cases(200)
@given(data=st.data())
def test_a_specification_is_read_or_refused(data: st.DataObject, folder: Path) -> None:
    content = json.loads(json.dumps(SPECIFICATION))
    node = data.draw(
        st.sampled_from(
            [content, content["task"], content["task"]["objective"], content["task"]["input_spec"]]
        )
    )
    node[data.draw(st.one_of(st.sampled_from([*node, *content["preprocessing"]]), st.text(max_size=8)))] = (
        data.draw(TREES)
    )
    try:
        text = json.dumps(specification.signed(content))
    except ValueError:  # NaN
        text = json.dumps(content)
    (folder / "spec.json").write_text(text)
    answered(lambda: specification.read(folder, []))


@cases(100)
@given(data=st.data())
def test_damage_to_a_specification_is_found(data: st.DataObject, folder: Path) -> None:
    good = json.dumps(specification.signed(SPECIFICATION)).encode()
    damaged = data.draw(mutations(good))
    (folder / "spec.json").write_bytes(damaged)
    found = answered(lambda: specification.read(folder, []))
    try:
        same = json.loads(damaged) == json.loads(good)
    except ValueError:
        same = False
    assert isinstance(found, tuple) == same


RESULTS = {
    "split": "test",
    "primary": "accuracy",
    "metrics": {"accuracy": {"mean": 0.5, "ci95": 0.1, "std": 1.0}},
    "episodes": 5,
    "step": 3,
}
RESULTS |= {"seed": 0, "protocol": {"way": 5}}


@cases(100)
@given(data=st.data())
def test_results_and_measurements_are_read_or_refused(data: st.DataObject, folder: Path) -> None:
    (folder / "results.json").write_bytes(data.draw(mutations(json.dumps(RESULTS).encode())))
    answered(lambda: read_results(folder / "results.json"))
    lines = b'{"step": 1, "split": "train", "loss": 0.5}\n{"step": 2, "split": "val", "accuracy": null}\n'
    (folder / "metrics.jsonl").write_bytes(data.draw(mutations(lines)))
    answered(lambda: read_metrics(folder))
