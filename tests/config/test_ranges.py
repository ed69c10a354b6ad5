"""What a YAML may say of its keys in `about.ranges`, and in which words a mistake there is answered."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from metalearn.config import ranges, schema
from metalearn.config.compose import compose, reopen
from metalearn.config.loader import Library, choices_in, packaged_folder
from metalearn.config.saved import read_saved
from metalearn.errors import ConfigError
from metalearn.rundir import choices

NETWORK = "about:\n  ranges:\n    {range}\n_target_: metalearn.models.mlp.MLP\n{key}\n"


def user_yaml(folder: Path, name: str, text: str) -> str:
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(folder)


def problems(*words: str, config_dir: str | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(list(words), config_dir)
    return caught.value.problems


@pytest.mark.parametrize(
    ("written", "value", "said"),
    [
        ("int >= 2", 1, "x=1 must be at least 2"),
        ("int ≥ 2", 1, "x=1 must be at least 2"),
        ("int >= 2 | null", None, None),
        ("float > 0", 0.0, "x=0.0 must be greater than 0"),
        ("float >= 0 < 1", 1.0, "x=1.0 must be less than 1"),
        ("float >= 0 < 1", 0.0, None),
        ("int <= 9223372036854775807", 2**63, "x=9223372036854775808 must be at most 9223372036854775807"),
        ("stride | pool", "strid", "x=strid is none of stride, pool; did you mean stride?"),
        ("1 | 2", 3, "x=3 is none of 1, 2"),
        ("int >= 1 | auto", "atuo", "x=atuo is neither a whole number nor auto; did you mean auto?"),
        ("int >= 1 | auto", 0, "x=0 must be at least 1"),
        ("auto | bool", True, None),
        ("text | [text]", ["anything"], None),
        ("random | path", "a/file.csv", None),
        (
            ["train | val"],
            ["train", "tran"],
            "x names tran, which is none of train, val; did you mean train?",
        ),
        ("[int >= 1]", [3, 0], "x[1]=0 must be at least 1"),
        ("float > 0 | 0", 0.0, None),
        ("float > 0 | 0", -1.0, "x=-1.0 must be greater than 0, or be 0"),
        ("0.5 | 1.0", 0.7, "x=0.7 is none of 0.5, 1.0"),
        ("0.50 | 1e-3", 0.001, None),
        ("int >= 1 | 0.5", 2.5, "x=2.5 must be whole, or be 0.5"),
    ],
)
def test_a_range_is_read_as_it_says(written: Any, value: Any, said: str | None) -> None:
    assert schema.range_problems("x", value, ranges.parse(written)) == ([said] if said else [])


@pytest.mark.parametrize(
    "written",
    [
        "",
        "true | auto",
        "auto | False",
        True,
        "int >",
        "int 3",
        "itn >= 2",
        "text > 3",
        "a | | b",
        "a |",
        "[[int]]",
        "[a] | [b]",
        ["a", "b"],
        {},
    ],
)
def test_what_is_no_range_is_refused(written: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        ranges.parse(written)


def test_a_word_that_is_a_bool_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"^'true': a switch has the range bool; write bool, as in auto "):
        ranges.parse("true | auto")


@pytest.mark.parametrize(
    ("written", "default", "given", "composed"),
    [
        ("0.5 | 1.0", 0.5, "1.0", 1.0),
        ("0.5 | 1", 0.5, "1", 1.0),
        ("float > 0 | 0", 0.5, "0", 0.0),
        ("float > 0 | auto", 0.5, "3", 3.0),
        ("float > 0 | auto", 0.5, "auto", "auto"),
        ("int >= 1 | 0.5", 1, "2", 2),
        ("int >= 1 | 0.5", 1, "0.5", 0.5),
        ("1 | 2", 1, "2", 2),
        ("auto | bool", "auto", "true", True),
    ],
)
def test_a_value_has_the_type_that_its_range_says(
    tmp_path: Path, written: str, default: Any, given: str, composed: Any
) -> None:
    text = NETWORK.format(range=f"rate: {written}", key=f"rate: {default}")
    found = compose(["model=mine", f"model.rate={given}"], user_yaml(tmp_path, "model/mine", text))
    assert (type(found["model"]["rate"]), found["model"]["rate"]) == (type(composed), composed)


@pytest.mark.parametrize(
    ("range", "key", "sentence"),
    [
        ("hidden: itn >= 2", "hidden: [1]", "about.ranges.hidden: 'itn >= 2' is neither a word nor one of "),
        ("hiden: [int]", "hidden: [1]", "about.ranges.hiden: it has no key hiden; did you mean hidden?"),
        ("hidden: [int > 3, int]", "hidden: [1]", "about.ranges.hidden: a list has one range for all"),
    ],
)
def test_a_mistake_in_a_users_ranges_names_file_and_key(
    tmp_path: Path, range: str, key: str, sentence: str
) -> None:
    folder = user_yaml(tmp_path, "model/mine", NETWORK.format(range=range, key=key))
    [said] = problems("model=mine", config_dir=folder)
    assert said.startswith(f"{tmp_path}/model/mine.yaml: {sentence}")


def test_ranges_of_a_users_own_keys_hold_before_torch(tmp_path: Path) -> None:
    text = NETWORK.format(range="depth: int >= 2 | null", key="depth: null")
    folder = user_yaml(tmp_path, "model/mine", text)
    assert compose(["model=mine", "model.depth=3"], folder)["model"]["depth"] == 3
    assert problems("model=mine", "model.depth=1", config_dir=folder) == ["model.depth=1 must be at least 2"]
    assert problems("model=mine", "model.depth=x", config_dir=folder) == [
        "model.depth=x is not a whole number (default: null)"
    ]


def test_a_base_gives_its_ranges_to_who_names_it(tmp_path: Path) -> None:
    text = "defaults: [_base, _self_]\n_target_: mine.Mine\ninner_lr: 0.1\n"
    folder = user_yaml(tmp_path, "algo/mine", text)
    words = ["algo=mine", "trusted=[mine]"]
    assert problems(*words, "algo.inner_lr=0", config_dir=folder) == [
        "algo.inner_lr=0.0 must be greater than 0"
    ]
    saved = compose(words, folder)["algo"]["about"]["ranges"]
    assert saved == {"inner_lr": "float > 0"}  # and not those of keys that it does not have


def test_a_yaml_that_names_a_class_of_ours_has_its_ranges(tmp_path: Path) -> None:
    folder = user_yaml(
        tmp_path,
        "algo/mine",
        "_target_: metalearn.algorithms.protonet.ProtoNet\ndistance: cosine\nscale: 1.0\n",
    )
    assert problems("algo=mine", "algo.distance=cosin", config_dir=folder) == [
        "algo.distance=cosin is none of euclidean, cosine; did you mean cosine?"
    ]


@pytest.mark.parametrize("about", ["about:", "about: {}"])
def test_an_empty_about_keeps_the_ranges_of_our_class(tmp_path: Path, about: str) -> None:
    text = f"{about}\n_target_: metalearn.algorithms.protonet.ProtoNet\ndistance: cosine\nscale: 1.0\n"
    folder = user_yaml(tmp_path, "algo/mine", text)
    assert problems("algo=mine", "algo.distance=x", config_dir=folder) == [
        "algo.distance=x is none of euclidean, cosine"
    ]


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("data.rotations=[null]", "data.rotations[0]=null is none of train, val, test; leave it out"),
        ("data.rotations=[train,null]", "data.rotations[1]=null is none of train, val, test; leave it out"),
        ("algo.adapts=[null]", "algo.adapts[0]=null is not text; leave it out"),
        ("trusted=[null]", "trusted[0]=null is not text; leave it out"),
    ],
)
def test_null_is_an_element_only_where_the_range_says_so(word: str, sentence: str) -> None:
    assert problems(word) == [sentence]


def test_a_list_may_hold_null_where_its_range_or_its_default_does(tmp_path: Path) -> None:
    folder = user_yaml(tmp_path, "model/mine", NETWORK.format(range="x: ['int | null']", key="x: []"))
    assert compose(["model=mine", "model.x=[null,2]"], folder)["model"]["x"] == [None, 2]
    user_yaml(tmp_path, "model/mine", NETWORK.format(range="x: [int]", key="x: [null, 1]"))
    assert compose(["model=mine"], folder)["model"]["x"] == [None, 1]
    user_yaml(tmp_path, "model/mine", NETWORK.format(range="x: [int]", key="x: [1]"))
    assert problems("model=mine", "model.x=[null]", config_dir=folder) == [
        "model.x[0]=null is not a whole number; leave it out"
    ]


def test_what_our_yamls_said_elsewhere_once_is_answered_in_a_users(tmp_path: Path) -> None:
    folder = user_yaml(tmp_path, "algo/mine", "_target_: mine.Mine\nplan: vmap\n")
    assert problems("algo=mine", "trusted=[mine]", config_dir=folder) == [
        f"{tmp_path}/algo/mine.yaml: algo.plan is now about.suits.plan; a dial of your own needs another name"
    ]
    user_yaml(tmp_path, "algo/parent", "_target_: mine.Mine\nchunk: 3\n")
    user_yaml(tmp_path, "algo/mine", "defaults: [parent, _self_]\n")
    reserved = (
        f"{tmp_path}/algo/parent.yaml: algo.chunk is now about.suits.chunk; a dial of your own needs another "
        "name"
    )
    assert problems("algo=mine", "trusted=[mine]", config_dir=folder) == [reserved]
    assert problems("algo=mine", "trusted=[mine]", "algo.chunk=4", config_dir=folder) == [
        "algo.chunk=4: algo.chunk is now device.chunk; write device.chunk=4",
        reserved,
    ]
    user_yaml(tmp_path, "optimizer/mine", "_target_: torch.optim.SGD\nlr: 0.1\nschedule: {name: cosine}\n")
    assert problems("optimizer=mine", config_dir=folder) == [
        f"{tmp_path}/optimizer/mine.yaml: optimizer.schedule is now a group, chosen with "
        "optimizer/schedule=NAME"
    ]
    user_yaml(tmp_path, "experiment/mine", "# @package _global_\nalgo: {chunk: 2}\n")
    assert problems("experiment=mine", config_dir=folder) == [
        "experiment=mine sets algo.chunk, which is now device.chunk"
    ]
    user_yaml(tmp_path, "experiment/mine", "# @package _global_\nabout: {ranges: {seed: int}}\n")
    assert problems("experiment=mine", config_dir=folder) == [
        "about.ranges stands in a recipe; ranges stand in the YAML whose keys they are of"
    ]


def test_what_a_group_shares_is_no_choice(tmp_path: Path) -> None:
    """Neither listed, nor chosen, nor swept over, nor in the way of a file of that name."""
    folder = user_yaml(tmp_path, "device/_base", "plan: nonsense\n")  # ours goes first
    library = Library(folder)
    for group in choices.GROUPS:
        assert not any(option.startswith("_") for option in library.options(group))
    assert problems("device=_base", config_dir=folder) == [
        "device=_base does not exist; choices: auto, cpu, cuda"
    ]
    [every] = library.parse(["device=glob(*)"])
    assert list(every.sweep_string_iterator()) == ["auto", "cpu", "cuda"]
    assert compose(["device=cpu"], folder)["device"]["plan"] == "vmap"


def test_a_base_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.yaml").write_text("key: secret\n")
    folder = user_yaml(
        tmp_path / "conf", "model/mine", "defaults: ['_x/../../../secret', _self_]\n_target_: mine.Mine\n"
    )
    assert "key" not in Library(folder).read("model", "mine")
    with pytest.raises(ConfigError, match="cannot be composed"):
        compose(["model=mine", "trusted=[mine]"], folder)


def test_schedules_and_clips_are_chosen_like_all_else() -> None:
    cfg = compose(
        ["optimizer=sgd", "optimizer/schedule=step", "optimizer.schedule.every=5", "optimizer/clip=norm"]
    )
    assert cfg["optimizer"]["schedule"] == {"name": "step", "final": 0.0, "gamma": 0.5, "every": 5}
    assert cfg["optimizer"]["clip"] == {"norm": 1.0, "value": None}
    assert cfg["choices"]["optimizer/schedule"] == "step"
    assert compose(["experiment=omniglot_maml"])["optimizer"]["schedule"]["name"] == "cosine"
    words = ["experiment=omniglot_maml", "optimizer/schedule=constant"]
    assert compose(words)["optimizer"]["schedule"]["name"] == "constant"


def saved_in(folder: Path, cfg: dict[str, Any]) -> dict[str, Any]:
    (folder / "config.yaml").write_text(yaml.safe_dump(cfg))
    return read_saved(folder)


def test_a_run_is_checked_by_the_ranges_that_it_was_begun_with(tmp_path: Path) -> None:
    cfg = compose([f"run_dir={tmp_path}"])
    cfg["data"]["about"]["ranges"]["way"] = "int >= 2 <= 7"
    with pytest.raises(ConfigError, match="^data.way=20 must be at most 7$"):
        reopen(saved_in(tmp_path, cfg), ["data.way=20"])


def test_a_run_without_ranges_is_checked_by_those_of_today(tmp_path: Path) -> None:
    cfg = compose([f"run_dir={tmp_path}"])
    del cfg["data"]["about"], cfg["algo"]["about"]["ranges"], cfg["choices"]
    with pytest.raises(ConfigError) as caught:
        reopen(saved_in(tmp_path, cfg), ["data.way=1", "algo.order=3"])
    assert caught.value.problems == ["algo.order=3 is none of 1, 2", "data.way=1 must be at least 2"]


def test_a_damaged_range_of_a_run_is_named(tmp_path: Path) -> None:
    cfg = compose([f"run_dir={tmp_path}"])
    cfg["data"]["about"]["ranges"]["way"] = "int >"
    with pytest.raises(
        ConfigError, match="config.yaml is damaged: data.about.ranges.way: 'int >' is neither"
    ):
        saved_in(tmp_path, cfg)


@pytest.mark.parametrize(
    ("group", "path"),
    [
        pytest.param(group, path, id=f"{group}/{path.stem}")
        for group in choices.GROUPS
        for path in sorted((packaged_folder() / group).glob("*.yaml"))
    ],
)
def test_our_own_ranges_can_be_read_and_have_their_keys(group: str, path: Path) -> None:
    about = (yaml.safe_load(path.read_text()) or {}).get("about") or {}
    node = {} if path.stem.startswith("_") else Library().read(group, path.stem)
    for key, written in about.get("ranges", {}).items():
        ranges.parse(written)
        assert path.stem.startswith("_") or schema.lookup(node, key)[0], f"{key} is not a key of {path}"


def test_every_number_and_word_of_a_plugin_has_a_range() -> None:
    """A number of any size, or any text, would be refused by nobody, or in a traceback."""
    library = Library()
    free = {"model.norm_statistics", "algo.scale"}  # a reference, whose range stands in _base; any factor
    for group in ("algo", "data", "model", "optimizer"):
        for path in choices_in(packaged_folder() / group):
            node = library.read(group, path.stem)
            said = node.get("about", {}).get("ranges", {})
            for key, value in schema.leaves(node):
                known = key in said or f"{group}.{key}" in {*schema.RANGES, *free}
                assert known or key == "_target_" or isinstance(value, bool), f"{path}: {key} has no range"


def test_no_table_of_ours_knows_a_plugin() -> None:
    assert {name.partition(".")[0] for name in schema.RANGES} <= {
        *("trainer", "eval", "device", "optimizer", "seed", "run_dir", "sweep", "trusted")
    }
    names = "|".join(
        path.stem for group in ("algo", "data", "model") for path in choices_in(packaged_folder() / group)
    )
    for path in sorted(Path(schema.__file__).parents[1].rglob("*.py")):
        found = re.findall(rf"""[!=]= ?["'](?:{names})["']""", path.read_text())
        assert found == [], f"{path} asks for the name of a plugin: {found}"
