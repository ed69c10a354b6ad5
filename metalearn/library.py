"""The YAMLs that can be chosen from, and Hydra's loader over them.

The folders that are searched are conf/ (packaged as metalearn.conf), then --config-dir, then $METALEARN_CONFIG_DIR.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metalearn.errors import ConfigError, raise_if

GROUPS = ("algo", "data", "model", "optimizer", "device", "experiment")
PRIMARY = "train"


class Library:
    """The folders with YAMLs, and Hydra's loader over them."""

    def __init__(self, config_dir: str | None = None) -> None:
        self.folders = [packaged_folder(), *user_folders(config_dir)]
        self.loader = loader_of(tuple(self.folders))
        self.groups = {*GROUPS, *(f"hydra/{group}" for group in self.loader.list_groups("hydra"))}
        self.refuse_shadows()

    def refuse_shadows(self) -> None:
        """Two YAMLs of one name would leave it to the order of folders which of them is meant."""
        homes: dict[str, Path] = {}
        problems = []
        for folder in self.folders:
            for path in sorted(p for group in GROUPS for p in (folder / group).glob("*.yaml")):
                name = f"{path.parent.name}/{path.stem}"
                if name in homes:
                    problems.append(f"{path} has the name of {homes[name]}; rename it")
                homes.setdefault(name, path)
        raise_if(problems)

    def options(self, group: str) -> list[str]:
        return sorted(self.loader.get_group_options(group))

    def path(self, group: str, option: str) -> Path:
        """The file of an option; it must exist."""
        return next(p for folder in self.folders if (p := folder / group / f"{option}.yaml").is_file())

    def read(self, group: str, option: str) -> dict[str, Any]:
        """One YAML as it stands, interpolations included."""
        try:
            content = OmegaConf.to_container(OmegaConf.load(self.path(group, option)))
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise ConfigError(f"{self.path(group, option)} cannot be read: {one_line(error)}") from error
        return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}

    def primary(self) -> dict[str, Any]:
        """train.yaml as it stands."""
        found: dict[str, Any] = yaml.safe_load((self.folders[0] / f"{PRIMARY}.yaml").read_text(encoding="utf-8"))
        return found

    def parse(self, overrides: list[str]) -> list[Override]:
        problems, parsed = [], []
        parser = OverridesParser.create(config_loader=self.loader)
        for text in overrides:
            try:
                parsed.append(parser.parse_override(text))
            except HydraException:
                problems.append(f"{text!r} is not of the form key=value (quote values with spaces or special characters: 'key=\"a b\"')")
        raise_if(problems)
        return parsed

    def load(self, overrides: list[str]) -> dict[str, Any]:
        """Compose and resolve, Hydra's own node included."""
        try:
            config = self.loader.load_configuration(PRIMARY, overrides, RunMode.RUN)
            hydra = OmegaConf.to_container(config.hydra, resolve=False)
            ours = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
            return {**plain(ours), "hydra": hydra}
        except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
            raise ConfigError(f"the configuration cannot be composed: {one_line(error)}") from error


def plain(config: Any) -> dict[str, Any]:
    """Dictionaries, lists and scalars with every interpolation replaced by its value."""
    try:
        content = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the configuration cannot be resolved: {one_line(error)}") from error
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def one_line(error: BaseException) -> str:
    """The first sentence of a composition error, without the advice to add the key."""
    misplaced = re.search(r"Could not override '(\w+)@\w+\.\1'", str(error))
    if misplaced:
        group = misplaced[1]
        return f"a YAML of a group chooses another group's default with `override /{group}@_global_.{group}: NAME`"
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip() and "+" not in line]
    return " ".join(lines[:2])


@functools.cache
def loader_of(folders: tuple[Path, ...]) -> ConfigLoaderImpl:
    Plugins.instance()  # registers the kinds of folders that a search path may name
    setup_globals()
    return ConfigLoaderImpl(search_path_of(folders))


def search_path_of(folders: tuple[Path, ...]) -> ConfigSearchPathImpl:
    search_path = ConfigSearchPathImpl()
    search_path.append("hydra", "pkg://hydra.conf")
    for i, folder in enumerate(folders):
        search_path.append("user" if i else "main", folder.as_uri())
    search_path.append("schema", "structured://")
    return search_path


def packaged_folder() -> Path:
    """conf/ as it was installed; in a checkout that was not installed it lies beside the package."""
    spec = importlib.util.find_spec("metalearn.conf")
    if spec is not None and spec.origin:
        return Path(spec.origin).parent
    return Path(__file__).resolve().parent.parent / "conf"


def user_folders(config_dir: str | None) -> list[Path]:
    """Folders with a user's own YAMLs, each of them once."""
    named = [("--config-dir", config_dir), ("METALEARN_CONFIG_DIR", os.environ.get("METALEARN_CONFIG_DIR"))]
    raise_if(f"{name}={folder} is not a folder" for name, folder in named if folder and not Path(folder).is_dir())
    return list(dict.fromkeys(Path(folder).resolve() for _, folder in named if folder))
