"""Evaluate a trained run, or an encoder of elsewhere: `equimod evaluate RUN_DIR`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, make_dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from equimod.models.settings import OF_TIMM
from equimod.train.command import refused_settings, run_command, wrong_usage_once
from equimod.train.config import RECIPE, SEEDS, Config, ConfigError, is_run, read_recipe, read_run
from equimod.train.config.settings import Labels
from equimod.train.evaluation import EVALUATORS


@dataclass(frozen=True)
class _Options:
    """Evaluate the newest checkpoint of a run; scores go to RUN_DIR/eval.json, figures to RUN_DIR/figures.

    The folder of an export is evaluated as well, and an encoder of timm. Without a choice, the quick ones:
    --linear-cached --knn --figures, and with EquiMod --equivariance.
    Example: equimod evaluate runs/simclr-equimod-cifar10 --linear
    """

    run_dir: Positional[Path]
    """Folder of the run, --output of its training; or of an export; or timm:NAME, with weights in its cache."""
    output: Path | None = None
    """Folder for eval.json and figures; none: RUN_DIR. Scores on other data overwrite those of the same name."""
    figures: bool = False
    """Loss curves, a sheet of images and views with their parameters, and the equivariance per operator, if known."""
    train: tuple[Path, ...] | None = None
    """Labelled training images; none: those of the run."""
    val: tuple[Path, ...] | None = None
    """Validation images; none: those of the run, or without labels the training images."""
    labels: Labels | None = None
    """What labels the images of folders have, as in training; none: as the run was told."""
    checkpoint: Path | None = None
    """Folder of a checkpoint; none: the newest of the run."""
    seed: int = 0
    """Seed of the classifier's order and crops, and of the views that everything else is measured on."""
    workers: int | None = None
    """Loader threads; none: one a core."""

    @property
    def of_run(self) -> bool:
        """Whether it is a run that is evaluated."""
        return is_run(self.run_dir, self.checkpoint)

    def config(self) -> Config:
        """That of the run, or what is known of an encoder of elsewhere. Raises ConfigError."""
        if str(self.run_dir).startswith(OF_TIMM):
            if self.output is None:
                raise ConfigError(f"{self.run_dir} has no folder for its scores; give --output FOLDER")
            return Config()
        if not self.of_run and (self.run_dir / RECIPE).exists():
            return replace(read_recipe(self.run_dir / RECIPE), equimod=False)
        return read_run(self.run_dir)

    def chosen(self, config: Config) -> list[str]:
        """The evaluators for a run of this configuration, in the order of EVALUATORS. Raises ConfigError."""
        chosen = [name for name in EVALUATORS if getattr(self, name)]
        for name in chosen:
            if EVALUATORS[name].needs_equimod and not config.equimod:
                option = name.replace("_", "-")
                without = "was trained without" if self.of_run else "is an encoder alone"
                raise ConfigError(f"--{option} needs EquiMod, and {self.run_dir} {without}; leave it out")
        if self.figures and not self.of_run:
            raise ConfigError(f"--figures shows a training, and {self.run_dir} is an encoder alone; leave it out")
        if chosen or self.figures:
            return chosen
        return [name for name, e in EVALUATORS.items() if e.by_default and (config.equimod or not e.needs_equimod)]

    def possible(self, chosen: Sequence[str], config: Config, labelled: bool) -> list[str]:
        """Those of the `chosen` evaluators that the data has labels for. ConfigError where one was asked for that it
        has none for, and for labelled data without validation images."""
        if labelled and chosen and not config.val:
            raise ConfigError(f"{self.run_dir} names no val images; give --val RECORDS")
        for name in chosen:
            if EVALUATORS[name].needs_labels and not labelled and getattr(self, name):
                option = name.replace("_", "-")
                raise ConfigError(
                    f"--{option} needs labels, and these images have none; give --train and --val with them"
                )
        return [name for name in chosen if labelled or not EVALUATORS[name].needs_labels]

    def draws_figures(self) -> bool:
        """Whether figures were asked for, or nothing was, of a run."""
        return self.figures or (self.of_run and not any(getattr(self, name) for name in EVALUATORS))


Options: type[_Options] = make_dataclass(
    "Options",
    [(name, Annotated[bool, arg(help=entry.help)], False) for name, entry in EVALUATORS.items()],
    bases=(_Options,),
    frozen=True,
)
"""With a flag for every evaluator."""


def parse(argv: Sequence[str]) -> tuple[_Options, Config]:
    """The options of a command line, and the configuration of the run with the data to evaluate on.

    Raises ConfigError; exits 2 through tyro, with a hint, for options it does not know and 0 for --help.
    """
    options = tyro.cli(Options, args=list(argv), description=_Options.__doc__, config=(FlagCreatePairsOff,))
    config = options.config()
    config = replace(
        config,
        data=options.train or config.data,
        val=options.val or config.val,
        labels=options.labels or config.labels,
    )
    if options.output is not None and options.output.exists() and not options.output.is_dir():
        raise ConfigError(f"--output {options.output} is no folder; give one, that need not be there yet")
    if not config.data:
        raise ConfigError(f"{options.run_dir} names no train images; give --train RECORDS")
    config.require_complete()
    if not 0 <= options.seed < SEEDS:
        raise ConfigError(f"seed={options.seed} is out of range; give 0 or more and less than {SEEDS}")
    if options.workers is not None and options.workers < 1:
        raise ConfigError(f"workers={options.workers} is too small; give 1 or more")
    return options, config


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM."""

    def run() -> None:
        with wrong_usage_once():
            options, config = parse(sys.argv[1:] if argv is None else argv)
            chosen = options.chosen(config)
        # Only now: torch takes seconds to import, and --help should not.
        from equimod.train.distributed import process_group
        from equimod.train.evaluation.results import draw_figures, evaluate
        from equimod.train.evaluation.trained_run import evaluation_device, open_trained_run

        with ExitStack() as stack:
            with refused_settings():
                dist_info = stack.enter_context(process_group(evaluation_device(config)))
            trained = open_trained_run(
                options.run_dir,
                config,
                options.checkpoint,
                seed=options.seed,
                workers=options.workers,
                output=options.output,
                dist_info=dist_info,
            )
            labelled = bool(trained.train.classes and trained.val.classes)
            possible = options.possible(chosen, config, labelled)
            is_first = dist_info.rank == 0
            if is_first and not config.val:
                print("no validation images: measured on the training images", flush=True)
            evaluate(trained, possible)
            if is_first and options.draws_figures():
                draw_figures(trained)

    return run_command(run, again="evaluate again; what was found before is in eval.json")


if __name__ == "__main__":
    sys.exit(main())
