"""What moves a run's numbers besides its settings and records: the code of equimod, and the libraries under it."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from equimod import models, pipelines
from equimod import train as train_package
from equimod.pipelines.errors import EquimodError
from equimod.train.config import Config

_SHOWN = 5  # changes in a message
_LIBRARIES = ("torch", "numpy", "simplejpeg", "pillow")  # that compute what a run is made of
OF_BACKENDS = {"dali": "nvidia-dali-cuda130", "ffcv": "ffcv"}
"""Packages of the backends that have one of their own."""
_BESIDE = ("equimod", "torchvision")
# Code that surrounds a training, and takes no part in what it computes. What reads images does, archives included: the
# fingerprint of images in files does not hold all of their bytes.
_SURROUNDINGS = (
    *(f"pipelines/conversion/{name}.py" for name in ("beton_writer", "check", "cifar", "convert", "convert_beton")),
    *(f"pipelines/conversion/{name}.py" for name in ("parquet_source", "records_source", "settings", "shard_task")),
    *(f"pipelines/conversion/{name}.py" for name in ("tar_writer", "tree", "unfinished_beton")),
    *("pipelines/backends/choose.py", "pipelines/cores.py", "pipelines/durable.py", "pipelines/errors.py"),
    *("pipelines/progress.py", "pipelines/records/manifest.py", "pipelines/shapes.py", "pipelines/stored.py"),
    *("pipelines/timing.py", "pipelines/workers.py", "train/checkpoint.py", "train/command.py", "train/config/"),
    *("train/embedding/", "train/environment.py", "train/evaluate.py", "train/evaluation/", "train/export/"),
    *("train/html_report/", "train/main.py", "train/opened_encoder.py", "train/report.py", "train/run_folder.py"),
    *("train/signals.py", "train/time_spent.py", "train/trackers.py", "train/validation.py"),
)


class OtherEnvironmentError(EquimodError):
    """A run was begun with code or libraries that may compute other numbers: the message names them."""


@dataclass(frozen=True)
class Environment:
    """Versions of libraries and of Python, and a digest of each file of code, by its path in the package."""

    libraries: dict[str, str]  # may move numbers
    others: dict[str, str]  # do not
    code: dict[str, str]

    @classmethod
    def of(cls, config: Config) -> Environment:
        """`here`, for a run."""
        return cls.here(config.backend, timm=config.encoder.timm_name is not None)

    @classmethod
    @cache
    def here(cls, backend: str, *, timm: bool = False) -> Environment:
        """That of this process, which loads images with `backend`, and has an encoder of timm's or not, as it was when
        it was first asked for."""
        own = [OF_BACKENDS[backend]] if backend in OF_BACKENDS else []
        names = (*_LIBRARIES, *own, *(["timm"] if timm else []))
        libraries = {name: _version(name) for name in names}
        others = {"python": platform.python_version(), **{name: _version(name) for name in _BESIDE}}
        return cls(libraries, others, code_digests())

    def changes(self, before: Environment) -> list[str]:
        """What is other than `before`, for people: first what may move numbers, then what does not."""
        return [*self._moving(before), *_differing(self.others, before.others), *self._files(before, moving=False)]

    def refuse(self, before: Environment, remedy: str) -> None:
        """Raise OtherEnvironmentError, which ends in `remedy`, where what is other than `before` may move numbers."""
        if moving := self._moving(before):
            more = f" and {len(moving) - _SHOWN} more" if len(moving) > _SHOWN else ""
            raise OtherEnvironmentError(
                f"the run was begun with other code or libraries, and its numbers may move: "
                f"{', '.join(moving[:_SHOWN])}{more}; {remedy}"
            )

    def _moving(self, before: Environment) -> list[str]:
        return [*_differing(self.libraries, before.libraries), *self._files(before, moving=True)]

    def _files(self, before: Environment, *, moving: bool) -> list[str]:
        names = sorted(self.code.keys() | before.code.keys())
        changed = [name for name in names if self.code.get(name) != before.code.get(name)]
        return [name for name in changed if moving != name.startswith(_SURROUNDINGS)]


@cache
def code_digests() -> dict[str, str]:
    """A digest of each file of code that a run depends on, by its path in the package.

    Files may be replaced under a process, which goes on with the code that it began with: they are read once.
    """
    roots = [Path(part.__path__[0]) for part in (models, pipelines, train_package)]
    files = [(root, path) for root in roots for path in sorted(root.rglob("*.py"))]
    return {
        path.relative_to(root.parent).as_posix(): sha256(path.read_bytes()).hexdigest()[:12] for root, path in files
    }


def digest_of(code: Mapping[str, str]) -> str:
    """What the code of `code_digests` is known by."""
    return sha256(json.dumps(code, sort_keys=True).encode()).hexdigest()[:12]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _differing(now: dict[str, str], before: dict[str, str]) -> list[str]:
    names = [name for name in {**now, **before} if now.get(name) != before.get(name)]
    return [f"{name} {now.get(name, 'none')} (was {before.get(name, 'none')})" for name in names]
