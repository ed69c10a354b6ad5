"""References and documents: `${…}`, aliases and Hydra's own settings, through which a YAML could reach
further than its text.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

import metalearn
from metalearn.cli.ls import group
from metalearn.config.compose import compose
from metalearn.config.saved import read_saved
from metalearn.data.partition import file_partition
from metalearn.errors import ConfigError
from tests.security.test_allowlist import SHAPE, refusals, write


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


class TestReferences:
    """`${…}` is resolved before the configuration is judged, so that it must not be able to do anything by
    itself.
    """

    @pytest.fixture
    def planted(self, canary: Path) -> Iterator[None]:
        """A resolver such as many projects register, `eval` above all."""
        OmegaConf.register_new_resolver("touch", lambda name="": canary.touch() or "x")
        yield
        OmegaConf.clear_resolver("touch")

    @pytest.mark.parametrize(
        "value",
        [
            "${touch:x}",
            "a ${touch:} b",
            "${oc.env:HOME,${touch:}}",
            "${${algo.name}:}",
            "${oc.decode:'${touch:}'}",
            "${oc.select:${touch:}}",
        ],
    )
    @pytest.mark.usefixtures("planted")
    def test_a_resolver_that_somebody_registered_is_never_called(
        self, tmp_path: Path, canary: Path, value: str
    ) -> None:
        body = f"_target_: metalearn.algorithms.protonet.ProtoNet\nname: touch\nx: {json.dumps(value)}\n"
        folder = write(tmp_path / "conf", "algo/evil", body + SHAPE)
        assert "algo.x=" in refusals("algo=evil", config_dir=folder)[0]
        assert not canary.exists()

    @pytest.mark.usefixtures("planted")
    def test_nor_from_a_defaults_list(self, tmp_path: Path, canary: Path) -> None:
        write(tmp_path / "conf", "algo/evil", "defaults:\n  - other: ${touch:}\n")
        with pytest.raises(ConfigError):
            compose(["algo=evil"], str(tmp_path / "conf"))
        assert not canary.exists()

    @pytest.mark.usefixtures("planted")
    def test_nor_from_the_command_line(self, canary: Path) -> None:
        assert "and nothing else may stand in it" in refusals("run_dir='${touch:}'")[0]
        assert not canary.exists()

    @pytest.mark.usefixtures("planted")
    @pytest.mark.parametrize("value", ["${touch:}", "${oc.env:HOME}", "${seed}"])
    def test_nor_from_a_run_folder_even_in_python(self, tmp_path: Path, canary: Path, value: str) -> None:
        saved = compose([])
        saved["data"]["root"] = value
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
        with pytest.raises(ConfigError, match=r"data.root=.* is a reference; a run saves values only"):
            metalearn.load(tmp_path)
        assert not canary.exists()

    def test_what_was_registered_works_again_afterwards(self) -> None:
        compose([])
        assert OmegaConf.create({"a": "${oc.decode:'3'}"}).a == 3

    @pytest.mark.parametrize(
        "value",
        ["${oc.env:EVIL}", "${oc.select:algo.evil}", "${oc.select:nothing,os.system}", "${algo.evil}"],
    )
    def test_what_a_reference_resolves_to_is_judged(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
    ) -> None:
        monkeypatch.setenv("EVIL", "os.system")
        folder = write(
            tmp_path / "conf", "algo/evil", f"_target_: {json.dumps(value)}\nevil: os.system\n" + SHAPE
        )
        assert (
            "algo._target_=os.system is outside the trusted packages"
            in refusals("algo=evil", config_dir=folder)[0]
        )

    def test_environment_and_other_keys_may_be_referred_to(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SCRATCH", "/scratch")
        folder = write(
            tmp_path,
            "experiment/own",
            "# @package _global_\ndata: {cache_dir: '${oc.env:SCRATCH}/cache-${seed}'}\n",
        )
        assert compose(["experiment=own", "seed=3"], folder)["data"]["cache_dir"] == "/scratch/cache-3"

    @pytest.mark.parametrize("link", ["BEFOREBEFORE", "{a: 'BEFORE', b: 'BEFORE'}"])
    def test_references_that_multiply_are_counted_not_followed(self, tmp_path: Path, link: str) -> None:
        lines = [f"x{i}: {link.replace('BEFORE', f'${{algo.x{i - 1}}}')}" for i in range(1, 60)]
        folder = write(
            tmp_path, "algo/bomb", "\n".join(["_target_: metalearn.x.X", "x0: lol", *lines]) + "\n" + SHAPE
        )
        start = time.monotonic()
        assert "references make the configuration larger than" in refusals("algo=bomb", config_dir=folder)[0]
        assert time.monotonic() - start < 20


class TestYamlBombs:
    LAUGHS = "a0: &a0 [lol]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
    )
    MERGES = "a0: &a0 {x: 1}\n" + "".join(
        f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40)
    )
    BOMBS = (
        *(
            (LAUGHS, "aliases make it larger than 100000 values"),
            (MERGES, "aliases make it larger"),
            ("a: &a [*a]\n", "go in a circle"),
        ),
        *(("- " * 5000, "nested too deeply"), ("a: x\n#" + " " * (1 << 20), "at most 1048576 are read")),
    )

    @pytest.mark.parametrize(("text", "reason"), BOMBS)
    def test_a_yaml_of_a_user_s_folder(self, tmp_path: Path, text: str, reason: str) -> None:
        folder = write(
            tmp_path, "algo/bomb", f"_target_: metalearn.x.X\n{text}{SHAPE}" if "- - " not in text else text
        )
        assert reason in refusals("algo=bomb", config_dir=folder)[0]
        with pytest.raises(ConfigError, match="bomb.yaml cannot be read"):
            group("algo", folder)

    @pytest.mark.parametrize(("text", "reason"), BOMBS)
    def test_the_configuration_of_a_run_folder(self, tmp_path: Path, text: str, reason: str) -> None:
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(
            ConfigError, match=f"config.yaml cannot be read: .*{reason}.*; restore it from a backup"
        ):
            read_saved(tmp_path)

    @pytest.mark.parametrize(
        ("name", "text"), [("p.yaml", LAUGHS), ("p.yaml", "- " * 5000), ("p.json", "[" * 99_999)]
    )
    def test_the_file_of_a_partition(self, tmp_path: Path, name: str, text: str) -> None:
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match="is not valid"):
            file_partition(tmp_path / name, ["a"])


@pytest.mark.parametrize("path", ["../../secret", "/../secret", "/algo/../../secret"])
def test_a_defaults_list_reads_no_file_outside_its_folder(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret.yaml").write_text("password: 42\n")
    folder = write(
        tmp_path / "conf",
        "algo/mine",
        f"defaults: ['{path}']\n_target_: metalearn.algorithms.protonet.ProtoNet\n{SHAPE}",
    )
    [sentence] = refusals("algo=mine", config_dir=folder)
    assert "secret lies outside the folders with YAMLs" in sentence


class TestHydraCountsOnlyFromTheCommandLine:
    @pytest.mark.parametrize(
        "hydra",
        [
            "sweep: {dir: /elsewhere}",
            "verbose: true",
            "mode: MULTIRUN",
            "output_subdir: .hydra",
        ],
    )
    def test_a_setting_in_a_yaml_is_refused(self, tmp_path: Path, hydra: str) -> None:
        folder = write(tmp_path, "experiment/evil", f"# @package _global_\nhydra:\n  {hydra}\n")
        found = refusals("experiment=evil", config_dir=folder)
        assert any(
            "Hydra's own settings count only from the command line; if you trust" in problem
            for problem in found
        ), found

    def test_a_recipe_cannot_choose_a_launcher(self, tmp_path: Path) -> None:
        """What some launchers are told, they run: submitit's `setup` is lines of a shell."""
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
        text = (
            "# @package _global_\ndefaults:\n  - override /hydra/launcher: joblib\nhydra: {launcher: "
            "{temp_folder: /elsewhere}}\n"
        )
        found = refusals("experiment=evil", config_dir=write(tmp_path, "experiment/evil", text))
        assert any(
            problem.startswith("hydra.launcher.temp_folder=/elsewhere stands in a YAML; ")
            for problem in found
        ), found

    def test_a_launcher_in_a_folder_of_one_s_own_needs_the_word(self, tmp_path: Path) -> None:
        folder = write(
            tmp_path,
            "hydra/launcher/mine",
            "_target_: hydra._internal.core_plugins.basic_launcher.BasicLauncher\n",
        )
        assert (
            "hydra/launcher=mine lies in a folder with YAMLs of your own; Hydra's own"
            in refusals("hydra/launcher=mine", config_dir=folder)[0]
        )
        compose(["hydra/launcher=mine", "trusted=[hydra]"], folder)

    def test_the_same_from_the_command_line_passes(self, tmp_path: Path) -> None:
        write(tmp_path, "algo/mine", "_target_: metalearn.algorithms.protonet.ProtoNet\n" + SHAPE)
        compose(["algo=mine", "hydra.sweep.dir=/elsewhere", "hydra.verbose=true"], str(tmp_path))
