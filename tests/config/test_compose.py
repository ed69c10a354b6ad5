"""What the configuration refuses, and in which words. The words are the product: they are all that a user
sees.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from metalearn.config import compatibility, loader, schema
from metalearn.config.compose import compose, reopen
from metalearn.config.loader import Library
from metalearn.errors import ConfigError

METHODS = ", ".join(loader.packaged_options("algo"))


def problems(*overrides: str, config_dir: Path | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(list(overrides), str(config_dir) if config_dir else None)
    return caught.value.problems


def user_yaml(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return folder


def test_the_defaults_compose_to_plain_values() -> None:
    cfg = compose([])
    assert cfg["algo"]["_target_"] == "metalearn.algorithms.maml.MAML"
    assert cfg["data"]["_target_"] == "metalearn.data.glyphs.Glyphs"
    assert cfg["device"]["plan"] == cfg["algo"]["about"]["suits"]["plan"]
    assert "hydra" not in cfg
    assert type(cfg["optimizer"]["betas"]) is list


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("algo.iner_lr=1", "algo.iner_lr=1: algo.iner_lr is not a key; did you mean algo.inner_lr?"),
        ("algo.fast_lr=1", "algo.fast_lr=1: algo.fast_lr is not a key; did you mean algo.inner_lr?"),
        ("inner_lr=1", "inner_lr=1: inner_lr is not a key; did you mean algo.inner_lr?"),
        ("data.ways=5", "data.ways=5: data.ways is not a key; did you mean data.way?"),
        (
            "trainer.epochs=5",
            "trainer.epochs=5: trainer.epochs is not a key; did you mean trainer.outer_steps?",
        ),
        ("lr=1", "lr=1: lr is not a key; did you mean optimizer.lr?"),
        ("xyzzy=1", "xyzzy=1: xyzzy is not a key"),
        (
            f"optimizer.lr={10**400}",
            "optimizer.lr is a number of 401 digits; at most 308 can be computed with",
        ),
        ("eval.batch_size=1", "eval.batch_size=1: eval.batch_size is now eval.chunk; write eval.chunk=1"),
        (
            "optimizer.schedule.nme=x",
            "optimizer.schedule.nme=x: optimizer.schedule.nme is not a key; did you mean "
            "optimizer.schedule.gamma?",
        ),
        (
            "optimizer.clip=norm",
            "optimizer.clip=norm: optimizer.clip is a group; write optimizer/clip=norm, choices: none, norm, "
            "value",
        ),
        (
            "optimizer.schedule=cosin",
            "optimizer.schedule=cosin: optimizer.schedule is a group; write optimizer/schedule=cosine, "
            "choices: constant, cosine, linear, step",
        ),
        (
            "optimizer.clip=null",
            "optimizer.clip=null: optimizer.clip is a group; write optimizer/clip=none, choices: none, norm, "
            "value",
        ),
        ("alg=maml", "alg=maml: alg is not a key; did you mean algo?"),
        ("hydra.swep.dir=x", "hydra.swep.dir=x: hydra.swep.dir is not a key; did you mean hydra.sweep.dir?"),
        (
            "algo=mamll",
            f"algo=mamll does not exist; did you mean algo=maml? choices: {METHODS}",
        ),
        ("optimizer=rmsprop", "optimizer=rmsprop does not exist; choices: adam, adamw, sgd"),
        ("optimizer=null", "optimizer=null does not exist; choices: adam, adamw, sgd"),
        ("algo.inner_lr=abc", "algo.inner_lr=abc is not a number (default: 0.4)"),
        ("algo.inner_lr=null", "algo.inner_lr=null is not a number (default: 0.4)"),
        ("algo.inner_lr=nan", "algo.inner_lr=nan is not a finite number (default: 0.4)"),
        ("algo.inner_lr=true", "algo.inner_lr=true is not a number (default: 0.4)"),
        (
            "optimizer.schedule.every=1e3",
            "optimizer.schedule.every=1000.0 is not a whole number (default: 2000)",
        ),
        ("trainer.patience=often", "trainer.patience=often is not a whole number (default: null)"),
        ("trainer.dry_run=1", "trainer.dry_run=1 is not true or false (default: false)"),
        ("model.channels=[1]", "model.channels=[1] is not a whole number (default: 64)"),
        ("optimizer.betas=[a,0.9]", "optimizer.betas[0]=a is not a number (default: 0.9)"),
        ("trusted=mine", "trusted=mine is not a list (default: [])"),
        ("data.way=-3", "data.way=-3 must be at least 2"),
        ("data.train.shot=0", "data.train.shot=0 must be at least 1"),
        ("optimizer.lr=0", "optimizer.lr=0.0 must be greater than 0"),
        ("seed=-1", "seed=-1 must be at least 0"),
        (
            "optimizer/schedule=cosin",
            "optimizer/schedule=cosin does not exist; did you mean optimizer/schedule=cosine? choices: "
            "constant, cosine, linear, step",
        ),
        (
            "optimizer.schedule.name=cosine",
            "optimizer.schedule.name=cosine: optimizer.schedule.name is now optimizer/schedule; write "
            "optimizer/schedule=cosine",
        ),
        ("algo.plan=loop", "algo.plan=loop: algo.plan is now device.plan; write device.plan=loop"),
        ("algo.chunk=2", "algo.chunk=2: algo.chunk is now device.chunk; write device.chunk=2"),
        (
            "algo.norm_statistics=running",
            "algo.norm_statistics=running: algo.norm_statistics is now model.norm_statistics; write "
            "model.norm_statistics=running",
        ),
        (
            "model.downsample=strid",
            "model.downsample=strid is none of stride, pool; did you mean stride?",
        ),
        (
            "model.norm_statistics=runing",
            "model.norm_statistics=runing is none of transductive, support, support_and_one, running; did "
            "you mean running?",
        ),
        ("algo.order=3", "algo.order=3 is none of 1, 2"),
        ("data.partition=vinyals", "data.partition=vinyals is none of random"),
        ("data.image_size=0", "data.image_size=0 must be at least 1"),
        ("algo.inner_lr=0", "algo.inner_lr=0.0 must be greater than 0"),
        ("optimizer.betas=[0.9,1]", "optimizer.betas[1]=1.0 must be less than 1"),
        ("device=_base", "device=_base does not exist; choices: auto, cpu, cuda"),
        ("eval.split=tests", "eval.split=tests is none of train, val, test; did you mean test?"),
        (
            "eval.checkpoint=bset",
            "eval.checkpoint=bset is none of best, last, step-NUMBER; did you mean best?",
        ),
        (
            "data.rotations=[tran]",
            "data.rotations names tran, which is none of train, val, test; did you mean train?",
        ),
        ("device.ranks=0", "device.ranks=0 must be at least 1"),
        ("device.ranks=1.5", "device.ranks=1.5 is neither a whole number nor auto"),
        ("device.ranks=atuo", "device.ranks=atuo is neither a whole number nor auto; did you mean auto?"),
        ("device.ranks=null", "device.ranks=null is not a whole number or text (default: 1)"),
        (
            "device.ranks=9",
            "device.ranks=9 but trainer.meta_batch_size=8: a rank without a task has nothing to do; use "
            "device.ranks=8",
        ),
        (
            "+algo.x=1",
            "+algo.x=1: keys cannot be added, the YAML lists all of them; to set one, write algo.x=1",
        ),
        ("++seed=1", "++seed=1: keys cannot be added, the YAML lists all of them; to set one, write seed=1"),
        (
            "~algo",
            "~algo: a group cannot be removed; choose another algo with algo=NAME, see: metalearn ls algo",
        ),
        (
            "data.way=2,3",
            "data.way=2,3 gives several values; add -m to run each of them, or write [a,b] for a list",
        ),
        ("algo@model=maml", "algo@model=maml: a group cannot be moved to another place; write algo=…"),
        (
            "seed",
            "'seed' is not of the form key=value (quote values with spaces or special characters: 'key=\"a "
            "b\"')",
        ),
        (
            "x=[",
            "'x=[' is not of the form key=value (quote values with spaces or special characters: 'key=\"a "
            "b\"')",
        ),
        (
            "hydra.searchpath=[pkg://os]",
            "hydra.searchpath may not be set; use --config-dir or METALEARN_CONFIG_DIR instead",
        ),
    ],
)
def test_a_mistake_is_answered_with_value_expectation_and_fix(override: str, sentence: str) -> None:
    assert problems(override) == [sentence]


@pytest.mark.parametrize(
    ("data", "word", "sentence"),
    [
        ("omniglot", "partition=vinyls", "is none of vinyals, random; did you mean vinyals?"),
        ("omniglot", "resize=cubic", "is none of nearest, area, lanczos"),
        ("image_folder", "channels=2", "is none of 1, 3"),
        ("image_folder", "fractions=[1.5,0,0]", None),
        ("synthetic_ratings", "num_users=5", "must be at least 10"),
        ("synthetic_ratings", "noise=-1", None),
        ("sinusoid", "train.shot=0", "must be at least 1"),
    ],
)
def test_what_a_source_may_be_asked_for_is_known_before_torch(
    data: str, word: str, sentence: str | None
) -> None:
    [said] = problems(f"data={data}", f"data.{word}")
    wanted = {
        "fractions=[1.5,0,0]": "data.fractions[0]=1.5 must be at most 1",
        "noise=-1": "data.noise=-1.0 must be at least 0",
    }
    assert said == wanted.get(word, f"data.{word} {sentence}")


def test_a_whole_group_cannot_be_set_at_once() -> None:
    assert problems("trainer=3") == [
        "trainer=3: trainer holds several keys; set one of them: "
        "trainer.outer_steps, trainer.meta_batch_size, trainer.batch_size, trainer.log_every"
    ]


def test_two_clips_contradict_each_other() -> None:
    assert problems("optimizer.clip={norm: 1, value: 1}") == [
        "optimizer.clip.norm and optimizer.clip.value are both set; set one of them to null"
    ]


def test_all_mistakes_come_at_once_and_a_misspelt_choice_does_not_hide_the_rest() -> None:
    found = problems("algo=protonett", "algo.distence=cosine", "data.shot=0", "optimizer.lr=fast")
    assert len(found) == 4
    assert "algo.distence is not a key; did you mean algo.distance?" in found[1]


def test_no_message_advises_to_add_a_key() -> None:
    assert not any(
        "+" in sentence for sentence in problems("algo.iner_lr=1", "trainr.outer_steps=3", "foo=1")
    )


def test_a_whole_number_becomes_float_where_the_default_is_float() -> None:
    cfg = compose(["optimizer.lr=1", "optimizer.clip.norm=2"])
    assert type(cfg["optimizer"]["lr"]) is float
    assert type(cfg["optimizer"]["clip"]["norm"]) is float


def test_null_is_kept_where_the_default_is_null_and_a_number_is_a_name_where_text_is_wanted() -> None:
    cfg = compose(["run_dir=2024", "trainer.patience=null"])
    assert cfg["run_dir"] == "2024"
    assert cfg["trainer"]["patience"] is None


def test_every_key_whose_default_is_null_has_a_type() -> None:
    library = Library()
    for data in library.options("data"):
        cfg = compose([f"data={data}"])
        allowed = schema.ranges_of(cfg)
        leaves = schema.leaves({key: value for key, value in cfg.items() if key != "choices"})
        untyped = [name for name, value in leaves if value is None and name not in allowed]
        assert untyped == [], f"data={data}: say in about.ranges, or in schema.RANGES, what these keys may be"


@pytest.mark.parametrize("experiment", Library().options("experiment"))
def test_every_recipe_composes(experiment: str) -> None:
    assert compose([f"experiment={experiment}"])["about"]["title"]


def test_a_recipe_overrides_choices_and_values_and_the_command_line_wins() -> None:
    recipe = ["experiment=omniglot_maml"]
    assert (
        compose(recipe)["trainer"]["outer_steps"]
        == Library().read("experiment", "omniglot_maml")["trainer"]["outer_steps"]
    )
    cfg = compose([*recipe, "trainer.outer_steps=5", "data=glyphs", "data.shot=2"])
    assert (cfg["trainer"]["outer_steps"], cfg["data"]["_target_"], cfg["data"]["shot"]) == (
        5,
        "metalearn.data.glyphs.Glyphs",
        2,
    )


def test_a_recipe_whose_algorithm_was_replaced_says_which_of_its_keys_do_not_fit() -> None:
    assert "experiment=omniglot_maml sets algo.order, which algo=protonet does not have" in problems(
        "experiment=omniglot_maml", "algo=protonet"
    )


def test_a_key_that_has_another_name_now_is_never_offered() -> None:
    offered = {
        name
        for word in ("optimizer.schedule.nam", "optimizer.schedule.names", "schedule.name")
        for name in compatibility.MOVED
        if f"did you mean {name}?" in problems(f"{word}=x")[0]
    }
    assert offered == set()
    [sentence] = problems("optimizer.schedule.name={a: 1}")
    assert "optimizer.schedule.name is now optimizer/schedule" in sentence


def test_a_recipe_may_set_keys_of_a_nested_group(tmp_path: Path) -> None:
    user_yaml(tmp_path, "experiment/mine", "# @package _global_\noptimizer: {schedule: {final: 0.5}}\n")
    assert compose(["experiment=mine"], str(tmp_path))["optimizer"]["schedule"]["final"] == 0.5
    assert compose(["optimizer.schedule={final: 0.5}"])["optimizer"]["schedule"]["final"] == 0.5


OLD_RECIPE = "# @package _global_\noptimizer: {schedule: {name: cosine}, clip: {norm: 5.0}}\n"


@pytest.mark.parametrize("words", [[], ["optimizer/schedule=linear"]])
def test_a_recipe_that_sets_the_name_of_a_schedule_is_told_to_choose_it(
    tmp_path: Path, words: list[str]
) -> None:
    """What was composed would be another schedule than the one that the run is known by."""
    user_yaml(tmp_path, "experiment/mine", OLD_RECIPE)
    assert problems("experiment=mine", *words, config_dir=tmp_path) == [
        "experiment=mine sets optimizer.schedule.name, which is now optimizer/schedule; write override "
        "/optimizer/schedule: cosine"
    ]
    chosen = "# @package _global_\ndefaults: [override /optimizer/schedule: cosine]\n" + OLD_RECIPE
    user_yaml(tmp_path, "experiment/mine", chosen)
    assert compose(["experiment=mine"], str(tmp_path))["choices"]["optimizer/schedule"] == "cosine"


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        (
            "defaults: [override /optimizer/schedule: null]",
            "experiment=mine chooses no optimizer/schedule, and a run needs one; choices: constant, cosine, "
            "linear, step",
        ),
        (
            "defaults: [override /device: null]",
            "experiment=mine chooses no device, and a run needs one; choices: auto, cpu, cuda",
        ),
        (
            "defaults: [override /logger: null]",
            "experiment=mine chooses no logger, and a run needs one; choices: mlflow, none, tensorboard, "
            "wandb",
        ),
    ],
)
def test_a_recipe_without_a_choice_that_a_run_needs_is_answered_first(
    tmp_path: Path, recipe: str, sentence: str
) -> None:
    user_yaml(tmp_path, "experiment/mine", f"# @package _global_\n{recipe}\n")
    assert problems("experiment=mine", config_dir=tmp_path) == [sentence]


def test_a_device_or_schedule_without_keys_that_a_run_reads_is_named(tmp_path: Path) -> None:
    user_yaml(tmp_path, "device/mine", "defaults: [_base, _self_]\nname: cpu\n")
    assert compose(["device=mine"], str(tmp_path))["device"]["name"] == "cpu"
    user_yaml(tmp_path, "optimizer/schedule/mine", "name: cosine\n")
    assert problems("device=mine", "optimizer/schedule=mine", config_dir=tmp_path) == [
        "optimizer/schedule=mine lacks final, gamma, every, which a run reads; begin its YAML with "
        "`defaults: [_base, _self_]`"
    ]


def test_a_recipe_may_name_a_choice_with_the_ending_of_its_file(tmp_path: Path) -> None:
    chosen = "defaults: [override /algo: protonet.yaml, override /optimizer/schedule: cosine.yaml]"
    user_yaml(tmp_path, "experiment/mine", f"# @package _global_\n{chosen}\n")
    names = compose(["experiment=mine"], str(tmp_path))["choices"]
    assert (names["algo"], names["optimizer/schedule"]) == ("protonet", "cosine")


def test_a_yaml_that_leaves_its_place_is_named(tmp_path: Path) -> None:
    user_yaml(tmp_path, "algo/mine", "# @package elsewhere\n_target_: mine.Mine\n")
    assert "algo=mine puts no keys into algo; take `# @package` out of its YAML" in problems(
        "algo=mine", config_dir=tmp_path
    )


def test_a_misspelt_key_in_a_recipe_is_found(tmp_path: Path) -> None:
    user_yaml(tmp_path, "experiment/mine", "# @package _global_\nalgo:\n  iner_lr: 1.0\nseed: many\n")
    found = problems("experiment=mine", config_dir=tmp_path)
    assert sorted(found) == [
        "experiment=mine sets algo.iner_lr, which algo=maml does not have",
        "seed=many is not a whole number (default: 0)",
    ]


def test_data_chooses_its_default_model_and_the_command_line_wins() -> None:
    assert compose(["data=sinusoid"])["model"]["_target_"] == "metalearn.models.mlp.MLP"
    assert compose(["data=sinusoid", "model=conv4"])["model"]["_target_"] == "metalearn.models.conv4.Conv4"
    assert compose(["model=conv4", "data=sinusoid"])["model"]["_target_"] == "metalearn.models.conv4.Conv4"


def test_a_folder_of_ones_own_adds_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user_yaml(
        tmp_path,
        "algo/mine",
        "about: {suits: {plan: loop}}\n_target_: metalearn.algorithms.protonet.ProtoNet\nmy_dial: 2\n",
    )
    assert compose(["algo=mine", "algo.my_dial=3"], str(tmp_path))["algo"]["my_dial"] == 3
    assert problems("algo=mine") == [f"algo=mine does not exist; choices: {METHODS}"]
    monkeypatch.setenv("METALEARN_CONFIG_DIR", str(tmp_path))
    assert compose(["algo=mine"])["device"]["plan"] == "loop"


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    assert problems(config_dir=tmp_path / "nowhere") == [
        f"--config-dir={tmp_path / 'nowhere'} is not a folder"
    ]


def test_a_yaml_that_shadows_one_of_ours_is_refused(tmp_path: Path) -> None:
    user_yaml(tmp_path, "algo/maml", "x: 1\n")
    [sentence] = problems(config_dir=tmp_path)
    assert sentence.startswith(f"{tmp_path}/algo/maml.yaml has the name of ")
    assert sentence.endswith("conf/algo/maml.yaml; rename it")


@pytest.mark.parametrize("text", ["a: [1", "a: ${nothing}", "a: ???", "defaults: [override /model: mlp]"])
def test_a_broken_yaml_is_one_sentence(tmp_path: Path, text: str) -> None:
    user_yaml(tmp_path, "data/mine", text)
    [sentence] = problems("data=mine", config_dir=tmp_path)
    assert sentence.startswith("the configuration cannot be ")
    assert "\n" not in sentence


def test_the_sentence_for_a_misplaced_override_says_how_to_write_it(tmp_path: Path) -> None:
    user_yaml(tmp_path, "data/mine", "defaults: [override /model: mlp]\n")
    assert "`override /model@_global_.model: NAME`" in problems("data=mine", config_dir=tmp_path)[0]


class TestReopen:
    def test_values_change_and_the_rest_stays(self) -> None:
        saved = compose(["algo=protonet"])
        assert reopen(saved, ["data.way=20"]) == {**saved, "data": {**saved["data"], "way": 20}}

    def test_a_group_that_was_fixed_is_not_offered_under_its_new_name(self) -> None:
        with pytest.raises(ConfigError) as caught:
            reopen(compose([]), ["optimizer.schedule.name=cosine", "optimizer.clip=norm", "algo.plan=loop"])
        assert caught.value.problems == [
            "optimizer.schedule.name=cosine: optimizer/schedule was fixed when the run began; start a new "
            "run with metalearn train to change it",
            "optimizer.clip=norm: optimizer/clip was fixed when the run began; start a new run with "
            "metalearn train to change it",
            "algo.plan=loop: algo.plan is now device.plan; write device.plan=loop",
        ]

    def test_the_same_mistakes_are_found(self) -> None:
        with pytest.raises(ConfigError) as caught:
            reopen(compose([]), ["data.ways=2", "data.shot=0", "algo=protonet"])
        assert caught.value.problems == [
            "algo=protonet: algo was fixed when the run began; start a new run with metalearn train to "
            "change it",
            "data.ways=2: data.ways is not a key; did you mean data.way?",
            "data.shot=0 must be at least 1",
        ]

    def test_the_device_may_be_chosen_anew(self) -> None:
        saved = compose(["algo=protonet"])
        reopened = reopen(saved, ["device=cpu"])
        assert reopened["device"] == {**saved["device"], "name": "cpu"}

    def test_a_device_of_ones_own_is_taken_with_all_that_it_stands_on(self, tmp_path: Path) -> None:
        user_yaml(tmp_path, "device/mine", "defaults: [cpu, _self_]\nthreads: 1\n")
        saved = compose(["algo=protonet"])
        assert saved["device"]["plan"] == saved["algo"]["about"]["suits"]["plan"]
        reopened = reopen(saved, ["device=mine"], str(tmp_path))
        assert reopened["device"] == {**saved["device"], "name": "cpu", "threads": 1}
        assert reopened["choices"]["device"] == "mine"


def test_values_that_torch_could_not_take_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(
            [
                "seed=99999999999999999999",
                "eval.seed=9223372036854775808",
                "model.channels=0",
                "data.num_classes=0",
            ]
        )
    assert set(caught.value.problems) == {
        "seed=99999999999999999999 must be at most 9223372036854775807",
        "eval.seed=9223372036854775808 must be at most 9223372036854775807",
        "model.channels=0 must be at least 1",
        "data.num_classes=0 must be at least 1",
    }


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        (
            "data.root=x",
            "data.root=x: data.root is not a key of this choice; it is a key of data=image_folder, "
            "data=omniglot",
        ),
        ("trainer=foo", "trainer=foo: trainer holds several keys"),
        (
            "~algo",
            "~algo: a group cannot be removed; choose another algo with algo=NAME, see: metalearn ls algo",
        ),
    ],
)
def test_the_way_out_fits_the_mistake(word: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"^{sentence}"):
        compose([word])


PARTS = """\
_target_: metalearn.data.sinusoid.Sinusoid
parts:
  - {name: a, size: 3}
  - {name: b, scale: 0.5, how: {many: 1}}
anything: []
"""


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("seed=1", None),
        ("data.parts=[]", None),
        ("data.parts=[{name: c, size: 1}, {scale: 2}, {how: {many: 2}}]", None),
        ("data.anything=[{x: {y: 1}}, {z: 2}]", None),
        (
            "data.parts=[{name: c, sise: 1}]",
            "data.parts[0].sise is not a key; did you mean data.parts[0].size?",
        ),
        ("data.parts=[{name: c}, {size: x}]", "data.parts[1].size=x is not a whole number (default: 3)"),
        (
            "data.parts=[3]",
            "data.parts[0]=3 is not several keys, such as {name: …, scale: …, how: …, size: …}",
        ),
    ],
)
def test_a_list_of_mappings_is_checked_mapping_by_mapping(
    word: str, problem: str | None, tmp_path: Path
) -> None:
    user_yaml(tmp_path, "data/parts", PARTS)
    if problem is None:
        compose(["data=parts", word], str(tmp_path))
    else:
        assert problems("data=parts", word, config_dir=tmp_path) == [problem]


def test_a_checkout_that_was_not_installed_has_its_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert (loader.packaged_folder() / "train.yaml").is_file()
