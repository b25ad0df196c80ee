"""Recipes: settings as YAML, read by tyro as the command line is, so that a value is checked alike in both."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, fields, is_dataclass, replace
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import tyro
import yaml

from equimod.models.settings import METHOD_NAMES, ConfigError
from equimod.pipelines.errors import nearest
from equimod.pipelines.stored import DamagedFileError, read_bytes
from equimod.train.config import augment
from equimod.train.config.differences import differing
from equimod.train.config.following import with_following
from equimod.train.config.settings import Config

RECIPES = Path(__file__).parent.parent / "recipes"
CONFIG = "config.yaml"
"""In the folder of a run, and of each of its checkpoints."""
RECIPE = "recipe.yaml"
"""In the folder of an exported encoder."""


def default_recipe(method: str, dataset: str | None, equimod: bool) -> Path | None:
    """The recipe of the paper's (or the embedded) setting, if there is one; with EquiMod, failing that, without.

    `dataset` None: a set of one's own.
    """
    of_dataset = f"_{dataset}" if dataset else ""
    known = {path.stem: path for path in RECIPES.glob("*.yaml")}
    names = [f"{method}{infix}{of_dataset}" for infix in (["_equimod", ""] if equimod else [""])]
    return next((known[name] for name in names if name in known), None)


def named_recipe(path: Path) -> Path:
    """The file of a recipe that is given by its name, such as simclr_imagenet_fast; any other path as it is."""
    known = RECIPES / f"{path}.yaml"
    return known if path.name == str(path) and not path.exists() and known.is_file() else path


def read_recipe(path: Path) -> Config:
    """Read a recipe or the config.yaml of a run.

    It starts from the recipe beside it that `extends: FILE` names, otherwise from the one of its method and data set.
    Raises ConfigError for a file that cannot be read, unknown keys and values of the wrong type.
    """
    recipe, parent = read_with_parent(path)
    return without_unused(recipe, parent, recipe, path)


def is_run(source: Path, checkpoint: Path | None) -> bool:
    """Whether this is the folder of a run, or is taken for one since a checkpoint is given."""
    return checkpoint is not None or (source / CONFIG).exists()


def read_run(folder: Path) -> Config:
    """The configuration of the run in `folder`. Raises ConfigError as `read_recipe`, and where there is no run."""
    path = folder / CONFIG
    if not path.is_file():
        raise ConfigError(f"{folder} holds no run (no {CONFIG}); give the --output folder of a training")
    return read_recipe(path)


def read_with_parent(path: Path, extending: tuple[Path, ...] = ()) -> tuple[Config, Config]:
    """The configuration of a recipe, and the one that it started from."""
    mapping, resolved = _load(path), path.resolve()
    parent: Path | None
    if "extends" in mapping:
        parent = path.parent / str(mapping.pop("extends")).replace("\0", "\ufffd")
        if parent.resolve() in (resolved, *extending):
            raise ConfigError(f"{path}: extends {parent.name}, which extends it in turn; name another recipe")
    else:
        method, dataset, equimod = (mapping.get(key, getattr(Config, key)) for key in ("method", "dataset", "equimod"))
        parent = default_recipe(method, dataset, equimod)
        if parent and parent.resolve() in (resolved, *extending):
            parent = None
    base = read_with_parent(parent, (resolved, *extending))[0] if parent else Config()
    leaves = dict(_leaves(mapping, base, path))
    try:
        config = _changed(base, leaves)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except _WrongTypeError as error:
        wrong = _of_wrong_type(base, leaves, str(error))
        raise ConfigError(
            f"{path}: {wrong}={leaves[wrong]!r} is of the wrong type; see --help for what it takes"
        ) from error
    return config, base


class _WrongTypeError(Exception):
    """A setting has a value of the wrong type: the message names its option."""


def _of_wrong_type(base: Config, leaves: Mapping[str, Any], said: str) -> str:
    """A setting whose value is of the wrong type, which an error `said` perhaps, before others."""
    text = said.replace("_", "-")
    named = sorted((text.find(_option(name)), name) for name in leaves if _option(name) in text)
    for name in (*(name for _, name in named[:1]), *islice(_misfits(base, leaves), 1)):
        if _are_refused(base, {name: leaves[name]}):
            return name
    names = list(leaves)
    while len(names) > 1:  # one after the other would take seconds
        first, rest = names[: len(names) // 2], names[len(names) // 2 :]
        names = first if _are_refused(base, {name: leaves[name] for name in first}) else rest
    return names[0]


def _misfits(base: Config, leaves: Mapping[str, Any]) -> Iterator[str]:
    """The settings whose values do not look like what they take: what tyro takes is another matter."""
    for name, value in leaves.items():
        *sections, field = name.split(".")
        try:
            kind = get_type_hints(type(reduce(_part, sections, base)))[field]
            msgspec.convert(value, kind, strict=False, dec_hook=lambda kind, value: kind(value))
        except msgspec.ValidationError:
            yield name
        except (AttributeError, IndexError, KeyError, TypeError):  # an operator that the base does not have
            pass


def _part(settings: Any, name: str) -> Any:
    """A section of settings by its name; a view by its number, and without one the first."""
    if name.isdecimal():
        return settings[int(name)]
    return getattr(settings if hasattr(settings, name) else settings.views[0], name)


def _are_refused(base: Config, leaves: Mapping[str, Any]) -> bool:
    """Whether one of these settings is of the wrong type."""
    try:
        _changed(base, leaves)
    except _WrongTypeError:
        return True
    except ConfigError:  # of the right type
        pass
    return False


_DEEPEST = 20  # values in values; settings need four


class _Loader(yaml.SafeLoader):
    """Refuses aliases, of which a few nested ones stand for more values than fit into memory, and what is nested so
    deep that it takes seconds to read."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"an alias (*{self.peek_event().anchor}); write the value out")
        if self._depth == _DEEPEST:
            raise yaml.YAMLError(f"values nested more than {_DEEPEST} deep")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            raise yaml.YAMLError(f"a key twice among {', '.join(map(str, mapping))}")
        return mapping


def _load(path: Path) -> dict[str, Any]:
    try:
        mapping = yaml.load(read_bytes(path).decode(), _Loader)  # a safe one
    except DamagedFileError as error:
        hint = nearest(path.stem, [known.stem for known in RECIPES.glob("*.yaml")])
        raise ConfigError(f"{error}{hint}; recipes lie in {RECIPES}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not YAML in UTF-8: {' '.join(str(error).split())}; correct it") from error
    if not isinstance(mapping, dict):
        raise ConfigError(f"{path} must hold settings as `key: value`, not {type(mapping).__name__}")
    return mapping


def _leaves(mapping: Mapping[str, Any], settings: Any, path: Path, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a recipe, `optim: {lr: 3}` as ("optim.lr", 3). Raises ConfigError for unknown keys."""
    known = {field.name for field in fields(settings)}
    for key, value in mapping.items():
        if key not in known:
            raise ConfigError(f"{path}: no setting is called {prefix}{key}{nearest(str(key), known)}")
        if key == augment.PREFIX:
            if not isinstance(value, Mapping):
                raise ConfigError(f"{path}: {key} holds settings of its own, not the value {value!r}")
            yield from augment.leaves(value)
            continue
        inner = getattr(settings, key)
        if not is_dataclass(inner):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _leaves(value, inner, path, f"{prefix}{key}.")
        else:
            raise ConfigError(f"{path}: {prefix}{key} holds settings of its own, not the value {value!r}")


def _changed(base: Config, leaves: Mapping[str, Any]) -> Config:
    """`base` with the settings of a recipe. Raises _WrongTypeError, and ConfigError for other faults of theirs."""
    arguments: list[str] = []
    for key, value in leaves.items():
        option, *words = as_options(key, value)
        if any(word.startswith("--") for word in words):  # would be another option
            raise _WrongTypeError(option)
        arguments += [option, *words]
    with io.StringIO() as said, redirect_stdout(said), redirect_stderr(said):
        try:
            return read_options(arguments, base)
        except SystemExit as exit:
            raise _WrongTypeError(said.getvalue()) from exit


def read_options(arguments: Sequence[str], base: Config) -> Config:
    """`base` with the options of a command line. Raises ConfigError; exits 2 through tyro, 0 for --help."""
    start = copy.copy(base)
    changed, others = augment.change(base, arguments)
    encoder, optim = with_following(base, others)
    for name, value in (("augment", changed), ("encoder", encoder), ("optim", optim)):
        object.__setattr__(start, name, value)  # what does not fit in between is not checked: tyro makes another one
    config: Config = tyro.cli(Config, args=others, default=start, description=Config.__doc__)
    return config


def as_options(key: str, value: Any) -> list[str]:
    """A setting of a recipe as the command line has it: ("optim.warmup_epochs", 3) as --optim.warmup-epochs 3."""
    option = _option(key)
    if isinstance(value, bool):
        start = max(option.rfind("."), 1) + 1  # of the last name
        return [option if value else f"{option[:start]}no-{option[start:]}"]
    return [option, *(map(str, value) if isinstance(value, list) else [str(value)])]


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def without_unused(config: Config, before: Config, recipe: Config, path: Path | None) -> Config:
    """Drop the settings of other methods, and those of EquiMod and E-SSL where they are off.

    Raises ConfigError where they are not those of `before`; it names `path` where `recipe`, read from it, has them.
    """
    unused: dict[str, str] = {
        name: f"with --method {config.method}; leave it out" for name in METHOD_NAMES if name != config.method
    }
    if not config.equimod:
        unused["equivariance"] = "without EquiMod; add --equimod or leave it out"
    if not config.essl:
        unused["rotation"] = "without E-SSL; add --essl or leave it out"
    for name, remedy in unused.items():
        changed = differing(asdict(getattr(config, name)), asdict(getattr(before, name)), f"{name}.")
        if changed:
            source = f"{path}: " if getattr(config, name) == getattr(recipe, name) else ""
            raise ConfigError(f"{source}{changed[0]} has no effect {remedy}")
    return replace(config, **{name: getattr(Config, name) for name in unused})


@contextmanager
def silence() -> Iterator[None]:
    """Drop what is printed inside."""
    with io.StringIO() as sink, redirect_stdout(sink), redirect_stderr(sink):
        yield
