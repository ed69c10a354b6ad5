"""The YAMLs that can be chosen from, and Hydra's loader over them.

The folders that are searched are conf/ (packaged as metalearn.conf), then --config-dir, then
$METALEARN_CONFIG_DIR.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer
from omegaconf.errors import OmegaConfBaseException

from metalearn.config.hydra_parts import (
    ConfigLoaderImpl,
    ConfigRepository,
    ConfigResult,
    ConfigSearchPathImpl,
    Glob,
    ObjectType,
    Override,
    OverridesParser,
    Plugins,
    RunMode,
    Sweep,
    setup_globals,
)
from metalearn.config.interpolation import RESOLVERS, reference_problems
from metalearn.config.safety import inner
from metalearn.errors import ConfigError, raise_if
from metalearn.files import check_yaml
from metalearn.rundir.choices import GROUPS

PRIMARY = "train"
# What Hydra and OmegaConf answer to a YAML that cannot be composed; the built-in ones are their own mistakes
# on odd content.
MISTAKES = (
    *(HydraException, OmegaConfBaseException, yaml.YAMLError, OSError),
    *(ValueError, TypeError, LookupError, AttributeError, AssertionError, RecursionError),
)
TRUST_HYDRA = (
    "Hydra's own settings count only from the command line; if you trust this YAML with them, add "
    "'trusted=[hydra]'"
)
OF_THE_RUN = ("runtime", "overrides", "job.override_dirname")  # settings that Hydra fills in itself


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
            for name, path in (
                (f"{group}/{path.stem}", path) for group in GROUPS for path in choices_in(folder / group)
            ):
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
        """The keys of one YAML, over those of its bases, interpolations as they stand."""
        merged = OmegaConf.merge(*(content for _, content in self.files(group, option)))
        content = OmegaConf.to_container(merged)
        return (
            {str(key): value for key, value in content.items() if key != "defaults"}
            if isinstance(content, dict)
            else {}
        )

    def files(self, group: str, option: str, seen: tuple[str, ...] = ()) -> list[tuple[Path, Any]]:
        """(file, content) of a YAML and, before it, of those of its group that its defaults list names."""
        path = self.path(group, option)
        try:
            check_yaml(path)
            content = OmegaConf.load(path)
            raw: Any = OmegaConf.to_container(content) if OmegaConf.is_dict(content) else {}
        except MISTAKES as error:
            raise ConfigError(f"{path} cannot be read: {one_line(error)}") from error
        listed = raw.get("defaults")
        bases = [
            name
            for name in (listed if isinstance(listed, list) else ())
            if isinstance(name, str) and name != "_self_" and "/" not in name and name not in (option, *seen)
        ]
        above = [
            file
            for name in bases
            if self.has(group, name)  # Hydra has a sentence for one that is not there
            for file in self.files(group, name, (*seen, option))
        ]
        return [*above, (path, content if OmegaConf.is_dict(content) else OmegaConf.create())]

    def has(self, group: str, option: str) -> bool:
        return any((folder / group / f"{option}.yaml").is_file() for folder in self.folders)

    def primary(self) -> dict[str, Any]:
        """train.yaml as it stands."""
        found: dict[str, Any] = yaml.safe_load(
            (self.folders[0] / f"{PRIMARY}.yaml").read_text(encoding="utf-8")
        )
        return found

    def parse(self, overrides: list[str]) -> list[Override]:
        problems, parsed = [], []
        parser = OverridesParser.create(config_loader=self.loader)
        for text in overrides:
            try:
                override = parser.parse_override(text)
                value = override.value()
            except HydraException:
                problems.append(
                    f"{text!r} is not of the form key=value (quote values with spaces or special characters: "
                    "'key=\"a b\"')"
                )
            except MISTAKES as error:
                problems.append(f"{short(text)} cannot be read: {one_line(error)}")
            else:
                override.config_loader = self.loader  # glob() asks it for the options of a group
                parsed.append(override)
                if not isinstance(value, Sweep) and holds_sweep(value) and not override.is_sweep_override():
                    problems.append(
                        f"{short(text)}: choice(), range() and their like cannot stand within a list or a "
                        "mapping"
                    )
        raise_if(problems)
        return parsed

    def load(self, overrides: list[str]) -> dict[str, Any]:
        """Compose and resolve, Hydra's own node included."""
        ours, hydra = self._composed(overrides)
        chosen = hydra["runtime"]["choices"]  # a defaults list may name a file with its ending
        hydra["runtime"]["choices"] = {
            group: name.removesuffix(".yaml") if isinstance(name, str) else name
            for group, name in chosen.items()
        }
        return {**plain(ours), "hydra": hydra}

    def unresolved(self, overrides: list[str]) -> dict[str, Any]:
        """Compose, interpolations as they stand: to be resolved beside other groups than these."""
        content = OmegaConf.to_container(self._composed(overrides)[0], resolve=False)
        assert isinstance(content, dict)
        return {str(key): value for key, value in content.items()}

    def _composed(self, overrides: list[str]) -> tuple[Any, Any]:
        """Our keys, and Hydra's own node."""
        try:
            with only_known_resolvers():
                config = self.loader.load_configuration(PRIMARY, overrides, RunMode.RUN)
            hydra = OmegaConf.to_container(config.hydra, resolve=False)
            return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]), hydra
        except MISTAKES as error:
            raise ConfigError(f"the configuration cannot be composed: {one_line(error)}") from error

    def foreign_settings(self, hydra: dict[str, Any], overrides: list[str]) -> list[str]:
        """Hydra's own settings that a user's YAML changes; some launchers run what their settings say, so
        that these cannot be judged.

        hydra: as composed from these overrides.
        """
        if len(self.folders) == 1:
            return []
        words = [word for word in overrides if word.startswith("hydra")]
        try:
            expected = loader_of((self.folders[0],)).load_configuration(PRIMARY, words, RunMode.RUN).hydra
        except MISTAKES:
            return [f"{' '.join(words)} lies in a folder with YAMLs of your own; {TRUST_HYDRA}"]
        theirs, ours = (
            dict(settings(tree)) for tree in (OmegaConf.to_container(expected, resolve=False), hydra)
        )
        changed = [
            name
            for name in {**ours, **theirs}
            if ours.get(name) != theirs.get(name) and not name.startswith(OF_THE_RUN)
        ]
        return [f"hydra.{name}={ours.get(name)} stands in a YAML; {TRUST_HYDRA}" for name in changed]


def holds_sweep(value: Any) -> bool:
    """Whether a value is, or has anywhere in it, one of several values."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, (Sweep, Glob)) or any(map(holds_sweep, inside))


def short(text: str) -> str:
    """A word of the command line as a message quotes it."""
    return text if len(text) <= 100 else f"{text[:100]}…"


def plugin_problems(hydra: dict[str, Any]) -> list[str]:
    """Launchers and sweepers that are not among the classes which Hydra found installed."""
    known = Plugins.instance().class_name_to_class
    named = {key: inner(hydra, key) for key in ("launcher._target_", "sweeper._target_")}
    return [
        f"hydra.{key}={target} is no plugin that is installed"
        for key, target in named.items()
        if target not in known
    ]


def settings(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of everything that is not a mapping with entries."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@contextlib.contextmanager
def only_known_resolvers() -> Iterator[None]:
    """Within it, `${NAME:…}` reaches only what a YAML may use, whatever this process has registered."""
    registered = BaseContainer._resolvers
    BaseContainer._resolvers = {name: resolver for name, resolver in registered.items() if name in RESOLVERS}
    try:
        yield
    finally:
        BaseContainer._resolvers = registered


def plain(config: Any) -> dict[str, Any]:
    """Dictionaries, lists and scalars with every interpolation replaced by its value."""
    try:
        written: Any = OmegaConf.to_container(config, resolve=False)
        raise_if(reference_problems(written))
        with only_known_resolvers():
            content = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MISTAKES as error:
        raise ConfigError(f"the configuration cannot be resolved: {one_line(error)}") from error
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def one_line(error: BaseException) -> str:
    """The first sentence of a composition error, without the advice to add the key."""
    misplaced = re.search(r"Could not override '(\w+)@\w+\.\1'", str(error))
    if misplaced:
        group = misplaced[1]
        return (
            f"a YAML of a group chooses another group's default with `override /{group}@_global_.{group}: "
            "NAME`"
        )
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip() and "+" not in line]
    return " ".join(lines[:2])


class OurLoader(ConfigLoaderImpl):  # type: ignore[misc]
    """Hydra's loader, but for what groups share, which is no choice of theirs."""

    def get_group_options(self, *args: Any, **kwargs: Any) -> list[str]:
        return [option for option in super().get_group_options(*args, **kwargs) if not is_base(option)]


class CheckedRepository(ConfigRepository):  # type: ignore[misc]
    """Hydra's reader of YAMLs, but for a look at those of a user before each is read."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        if ".." in config_path.split("/"):
            raise ValueError(f"{config_path} lies outside the folders with YAMLs; name one that lies within")
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is not None and source.provider == "user":
            path = Path(source.path, source._normalize_file_name(config_path))
            try:
                check_yaml(path)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None  # `one_line` would quote the cause
        return super().load_config(config_path)


@functools.cache
def loader_of(folders: tuple[Path, ...]) -> ConfigLoaderImpl:
    Plugins.instance()  # registers the kinds of folders that a search path may name
    setup_globals()
    loader = OurLoader(search_path_of(folders))
    loader.repository = CheckedRepository(loader.config_search_path)
    return loader


def search_path_of(folders: tuple[Path, ...]) -> ConfigSearchPathImpl:
    search_path = ConfigSearchPathImpl()
    search_path.append("hydra", "pkg://hydra.conf")
    for i, folder in enumerate(folders):
        search_path.append("user" if i else "main", f"file://{folder}")
    search_path.append("schema", "structured://")
    return search_path


def packaged_folder() -> Path:
    """conf/ as it was installed; in a checkout that was not installed it lies beside the package."""
    spec = importlib.util.find_spec("metalearn.conf")
    if spec is not None and spec.origin:
        return Path(spec.origin).parent
    return Path(__file__).resolve().parents[2] / "conf"


def packaged_options(group: str) -> list[str]:
    """The choices of a group that are ours."""
    return [path.stem for path in choices_in(packaged_folder() / group)]


def choices_in(folder: Path) -> list[Path]:
    """The YAMLs of a group's folder that can be chosen, by name."""
    return sorted(path for path in folder.glob("*.yaml") if not is_base(path.stem))


def is_base(name: str) -> bool:
    """Whether a YAML of this name holds what others share, and is no choice itself."""
    return name.startswith("_") and name != "_self_"


def user_folders(config_dir: str | None) -> list[Path]:
    """Folders with a user's own YAMLs, each of them once."""
    named = [("--config-dir", config_dir), ("METALEARN_CONFIG_DIR", os.environ.get("METALEARN_CONFIG_DIR"))]
    raise_if(
        f"{name}={folder} is not a folder" for name, folder in named if folder and not Path(folder).is_dir()
    )
    return list(dict.fromkeys(Path(folder).resolve() for _, folder in named if folder))
