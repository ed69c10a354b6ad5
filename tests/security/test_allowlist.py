"""No configuration, whoever wrote it, may name code that the command line did not trust. The canary must not
appear.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import yaml

from metalearn.build import instantiate
from metalearn.cli import main as cli
from metalearn.config.compose import compose, reopen
from metalearn.config.safety import hydra_problems, target_problems
from metalearn.errors import ConfigError

SHAPE = "plan: loop\nchunk: 0\n"


def write(folder: Path, name: str, text: str) -> str:
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(folder)


def refusals(*overrides: str, config_dir: str | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(list(overrides), config_dir)
    return caught.value.problems


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.mark.fault(17)
@pytest.mark.parametrize(
    "body",
    [
        "_target_: os.system\ncommand: touch {canary}\n",
        "_target_: builtins.exec\n",
        "_target_: subprocess.Popen\nargs: [touch, '{canary}']\n",
        "_target_: hydra.utils.get_method\npath: os.system\n",
        "_target_: metalearnx.Evil\n",
        "_target_: torch.load\nf: x\n",
        "_target_: torch.optimise.X\n",
        "_target_: 'torch.nn.; import os'\n",
        "_target_: 'metalearn..x'\n",
        "_target_: [os.system]\n",
        "_target_: {{a: os.system}}\n",
        "_target_: metalearn.algorithms.protonet.ProtoNet\nextra: {{_target_: os.system, command: touch "
        "{canary}}}\n",
        "_target_: metalearn.algorithms.protonet.ProtoNet\nextra: [[{{_target_: os.system}}]]\n",
        "_target_: metalearn.algorithms.protonet.ProtoNet\nabout.x: {{_target_: os.system}}\n",
        "_target_: metalearn.algorithms.protonet.ProtoNet\ninner: {{about: {{_target_: os.system}}}}\n",
        "_target_: ${{oc.env:EVIL_TARGET}}\n",
        "_target_: metalearn.algorithms.protonet.ProtoNet\nname: os.system\nextra: {{_target_: "
        "'${{algo.name}}'}}\n",
        "_target_: metalearn.algorithms.protonet.ProtoNet\n_partial_: true\n",
        "_target_: metalearn.algorithms.protonet.ProtoNet\n_args_: [1]\n",
        "_target_: metalearn.algorithms.protonet.ProtoNet\n_convert_: object\n",
        "_target_: metalearn.algorithms.protonet.ProtoNet\nextra: ${{oc.env:EVIL_TEXT}}\n",
    ],
)
def test_a_name_outside_the_list_is_refused_before_anything_is_imported(
    tmp_path: Path,
    canary: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    body: str,
) -> None:
    monkeypatch.setenv("EVIL_TARGET", "os.system")
    monkeypatch.setenv("EVIL_TEXT", "${oc.env:HOME}")
    folder = write(tmp_path / "conf", "algo/evil", body.format(canary=canary) + SHAPE)
    assert cli.main(["train", "--config-dir", folder, "algo=evil", f"run_dir={tmp_path}/run"]) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("error: algo.")
    assert "Traceback" not in complaint
    assert not canary.exists()
    assert not (tmp_path / "run").exists()


def test_a_stranger_s_package_is_named_with_the_word_that_would_trust_it(tmp_path: Path) -> None:
    folder = write(tmp_path, "algo/mine", "_target_: mine.Mine\n" + SHAPE)
    assert refusals("algo=mine", config_dir=folder) == [
        "algo._target_=mine.Mine is outside the trusted packages; if you trust its code, add "
        "'trusted=[mine]' to the command line"
    ]
    assert compose(["algo=mine", "trusted=[mine]"], folder)["trusted"] == ["mine"]


def test_trust_does_not_extend_to_names_that_only_begin_alike(tmp_path: Path) -> None:
    folder = write(tmp_path, "algo/mine", "_target_: mine_too.Mine\n" + SHAPE)
    assert "trusted=[mine_too]" in refusals("algo=mine", "trusted=[mine]", config_dir=folder)[0]


def test_a_yaml_cannot_trust_itself(tmp_path: Path) -> None:
    folder = write(
        tmp_path, "experiment/evil", "# @package _global_\ntrusted: [os]\nalgo: {_target_: os.system}\n"
    )
    found = refusals("experiment=evil", config_dir=folder)
    assert "trusted=['os'] stands in a YAML; it counts only from the command line" in found


def test_a_run_folder_cannot_trust_itself() -> None:
    saved = compose([])
    saved["trusted"], saved["algo"]["_target_"] = ["os"], "os.system"
    with pytest.raises(ConfigError, match=r"add 'trusted=\[os\]' to the command line"):
        reopen(saved, [])


@pytest.mark.parametrize(
    "hydra",
    [
        "callbacks: {x: {_target_: os.system, command: id}}",
        "launcher: {_target_: subprocess.Popen}",
        "sweeper: {_target_: hydra.utils.call}",
        "job: {env_set: {LD_PRELOAD: evil.so}}",
        "job: {env_copy: [NOTHING_OF_THIS_NAME]}",
        "job: {name: ../../evil}",
        "callbacks: {x: {_target_: hydra._internal.core_plugins.bash_completion.os.system, command: id}}",
        "launcher: {_target_: hydra._internal.core_plugins.bash_completion.os.system, command: id}",
        "sweeper: {_target_: hydra_plugins.x.y.EvilLauncher}",
        "sweeper: {_target_: hydra._internal.core_plugins.basic_sweeper.BasicSweeper, "
        "x: {_target_: hydra_plugins.a.b.CSweeper}}",
        "launcher: {_target_: '${oc.env:EVIL_TARGET}'}",
        "searchpath: [pkg://evil]",
    ],
)
def test_hydra_s_own_settings_are_judged_too(
    tmp_path: Path, hydra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVIL_TARGET", "os.system")
    monkeypatch.setenv("EVIL_TEXT", "ext://os.environ")
    folder = write(tmp_path, "experiment/evil", f"# @package _global_\nhydra:\n  {hydra}\n")
    with pytest.raises(ConfigError):  # even with the word that lets a YAML set them at all
        compose(["experiment=evil", "trusted=[hydra]"], folder)


@pytest.mark.parametrize(
    "hydra",
    [
        "job_logging: {formatters: {x: {'()': os.system, command: id}}}",
        "job_logging: {handlers: {x: {class: subprocess.Popen, args: id}}}",
        "hydra_logging: {handlers: {x: {class: logging.StreamHandler, stream: 'ext://os.environ'}}}",
        "job_logging: {handlers: {x: {class: logging.handlers.QueueHandler, queue: os.getcwd}}}",
        "job_logging: {handlers: {x: {class: logging.handlers.SocketHandler, host: evil, port: 1}}}",
        "job_logging: {handlers: {x: {class: logging.FileHandler, filename: /home/me/.bashrc}}}",
        "job_logging: {handlers: {x: {class: logging.FileHandler, filename: "
        "'${hydra.runtime.output_dir}/../x.log'}}}",
        "job_logging: {handlers: {x: {class: logging.StreamHandler, stream: '${oc.env:EVIL_TEXT}'}}}",
        "job_logging: {handlers: {x: {class: logging.StreamHandler, '.': {stream: 1}}}}",
        "job_logging: {filters: {x: {'()': os.system}}}",
    ],
)
def test_no_yaml_configures_logging_without_that_word(
    tmp_path: Path, hydra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVIL_TEXT", "ext://os.environ")
    folder = write(tmp_path, "experiment/evil", f"# @package _global_\nhydra:\n  {hydra}\n")
    with pytest.raises(ConfigError, match=r"trusted=\[hydra\]"):
        compose(["experiment=evil"], folder)


def test_hydra_s_launchers_and_sweepers_pass() -> None:
    hydra = {
        "launcher": {"_target_": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"},
        "sweeper": {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"},
        "job": {"name": "train"},
    }
    assert hydra_problems(hydra) == []


@pytest.mark.parametrize("name", ["default", "stdout", "none", "disabled"])
def test_hydra_s_own_choices_of_logging_pass(name: str) -> None:
    compose([f"hydra/job_logging={name}"])


def test_a_plugin_must_be_one_that_hydra_knows() -> None:
    found = refusals("hydra.launcher._target_=hydra_plugins.no_such.plugin.EvilLauncher")
    assert found == [
        "hydra.launcher._target_=hydra_plugins.no_such.plugin.EvilLauncher is no plugin that is installed"
    ]


def test_prose_is_not_judged_because_it_is_never_built() -> None:
    assert (
        target_problems({"about": {"_target_": "os.system"}, "algo": {"about": {"_args_": "${x}"}}}, []) == []
    )


class TestWhatANameResolvesTo:
    """The second half: a name with an allowed prefix may still lead anywhere."""

    @pytest.mark.parametrize(
        ("target", "reason"),
        [
            ("metalearn.cli.main.main", "is not a class that derives from metalearn.core.Algorithm"),
            (
                "metalearn.build.device.os.system",
                "metalearn.build.device.os is the module os, which metalearn.build.device only imports",
            ),
            ("metalearn.config.loader.Path", "is not a class that derives from metalearn.core.Algorithm"),
            ("torch.nn.Linear", "is not a class that derives from metalearn.core.Algorithm"),
            ("metalearn.algorithms.maml.Maml", "metalearn.algorithms.maml has no Maml"),
            ("metalearn.nothing.X", "metalearn has no nothing"),
        ],
    )
    def test_it_must_be_a_class_of_the_kind(self, target: str, reason: str) -> None:
        with pytest.raises(ConfigError, match=reason):
            instantiate.resolve("algo._target_", target, instantiate.BASES["algo"], [])

    def test_a_class_that_is_only_reachable_through_an_allowed_module_is_refused(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stranger = type("Stranger", (torch.nn.Module,), {"__module__": "evil"})
        monkeypatch.setattr(torch.nn, "Stranger", stranger, raising=False)
        with pytest.raises(
            ConfigError,
            match=r"torch.nn.Stranger is defined in evil, outside metalearn., torch.optim., torch.nn. and",
        ):
            instantiate.resolve("model._target_", "torch.nn.Stranger", torch.nn.Module, [])

    def test_construct_judges_again_what_a_run_folder_might_have_smuggled_in(self) -> None:
        cfg = compose([])
        cfg["model"]["extra"] = {"_target_": "os.system", "command": "id"}
        with pytest.raises(
            ConfigError, match=r"model.extra._target_=os.system is outside the trusted packages"
        ):
            instantiate.construct(cfg, "model", input_spec=None)


class TestOnesOwnClasses:
    SOURCE = "from metalearn.algorithms.protonet import ProtoNet\n\n\nclass Mine(ProtoNet):\n    pass\n"

    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        (tmp_path / "own_method.py").write_text(self.SOURCE)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
        monkeypatch.delitem(sys.modules, "own_method", raising=False)
        body = "_target_: own_method.Mine\ndistance: euclidean\nscale: 1.0\n"
        return write(tmp_path / "conf", "algo/mine", body + SHAPE)

    def test_the_working_folder_comes_last_and_only_with_trust(self, folder: str) -> None:
        cfg = compose(["algo=mine", "trusted=[own_method]"], folder)
        with pytest.raises(ConfigError, match="there is no package own_method"):
            instantiate.resolve("algo._target_", "own_method.Mine", instantiate.BASES["algo"], [])
        assert (
            instantiate.resolve(
                "algo._target_", cfg["algo"]["_target_"], instantiate.BASES["algo"], cfg["trusted"]
            ).__name__
            == "Mine"
        )
        assert sys.path[-1] == str(Path.cwd())

    @pytest.mark.parametrize(
        ("source", "reason"),
        [
            ("def broken(:\n", "importing own_method failed: SyntaxError"),
            ("raise RuntimeError('no')\n", "importing own_method failed: RuntimeError: no"),
            (
                "import a_library_that_is_not_there\n",
                "own_method needs a_library_that_is_not_there, which is not installed",
            ),
        ],
    )
    def test_a_broken_module_is_one_sentence(self, folder: str, source: str, reason: str) -> None:
        Path("own_method.py").write_text(source)
        with pytest.raises(ConfigError, match=reason):
            instantiate.resolve("algo._target_", "own_method.Mine", instantiate.BASES["algo"], ["own_method"])

    def test_a_key_that_the_class_does_not_take_is_named(self, folder: str) -> None:
        write(Path(folder), "model/mine", "_target_: metalearn.models.mlp.MLP\nwidth: 3\n")
        cfg = compose(["model=mine"], folder)
        with pytest.raises(
            ConfigError, match=r"model: metalearn.models.mlp.MLP cannot be built from its YAML: .*'width'"
        ):
            instantiate.construct(cfg, "model", input_spec=None)


@pytest.mark.fault(17)
def test_a_saved_configuration_of_a_stranger_runs_nothing(
    tmp_path: Path, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = compose([])
    cfg["algo"] = {**cfg["algo"], "_target_": "os.system", "command": f"touch {canary}"}
    cfg["trusted"] = ["os"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(cfg))
    assert cli.main(["eval", str(tmp_path)]) == 2
    assert "algo._target_=os.system is outside the trusted packages" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text(f"a: !!python/object/apply:os.system ['touch {canary}']\n")
    assert cli.main(["resume", str(tmp_path)]) == 2
    assert not canary.exists()
