"""Files of any content in place of those that equimod reads: each is read, or answered by an error that names it."""

from __future__ import annotations

import io
import json
import re
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, features

from equimod.benchmarks.campaigns import toys
from equimod.benchmarks.campaigns.campaign import Trial
from equimod.benchmarks.campaigns.flips import HEAD, REFUSED, damaged, everything
from equimod.benchmarks.campaigns.mutations import changed
from equimod.pipelines.codec import DamagedImageError
from equimod.pipelines.conversion import open_source
from equimod.pipelines.conversion.check import Encoding, check_image
from equimod.pipelines.conversion.convert import shard_tasks
from equimod.pipelines.conversion.shard_task import convert_shard, start_worker, taken_over
from equimod.pipelines.conversion.tar_writer import describe_shard
from equimod.pipelines.decode import decode
from equimod.pipelines.durable import POINTER, kept
from equimod.pipelines.errors import EquimodError
from equimod.pipelines.records import open_records
from equimod.pipelines.records.beton import ENTRY, MAGIC
from equimod.pipelines.records.tar import FORM, MANIFEST, PROGRESS, load_manifest
from equimod.pipelines.stored import DIGESTS, Digests, seal
from equimod.pipelines.workers import SPAWN
from equimod.train.checkpoint import FILES, OPTIMIZER, Checkpoint, first_sound, restore
from equimod.train.config import CONFIG, read_recipe
from equimod.train.distributed import DistInfo
from equimod.train.evaluation.factor_table import read_factors
from equimod.train.evaluation.scores import EVAL, read_scores
from equimod.train.report import read_events
from equimod.train.run import build_train_state
from equimod.train.run_folder import CHECKPOINTS

SECONDS, BYTES = 1.0, 256 * 2**20
"""What an answer may take: of the processor, and of memory beyond what was in use."""
READ = "read"
_IMAGES: dict[str, dict[str, object]] = {
    "JPEG": {},
    "JPEG progressive": {"progressive": True, "subsampling": 1},
    **{form: {} for form in ("PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000")},
    "TIFF compressed": {"compression": "tiff_lzw"},
    **({"AVIF": {}} if features.check("avif") else {}),
}


@dataclass(frozen=True)
class Target:
    """A kind of file."""

    path: Path
    read: Callable[[Path], object]
    digests: Path | None = None  # where its digest stands, which is made to fit, as another program could
    seal: Callable[[], bytes] = bytes  # what is to stand there
    part: slice | None = None  # of its bytes, that alone is changed; its length stays


def fuzz(folder: Path, seed: int, count: int) -> Iterator[Trial]:
    """Change files of each kind in turn and read them."""
    targets = {**_of_runs(folder / "runs"), **_of_records(folder / "records"), **_of_sources(folder / "sources")}
    for number in range(count):
        name = list(targets)[number % len(targets)]
        yield _trial(f"trial {number}, {name}", targets[name], np.random.default_rng([seed, number]))


def _trial(what: str, target: Target, rng: np.random.Generator) -> Trial:
    def damage(content: bytes) -> bytes:
        if target.part is None:
            return changed(content, rng)
        start, stop, _ = target.part.indices(len(content))
        part = changed(content[start:stop], rng)[: stop - start]
        return content[:start] + part.ljust(stop - start, b"\0") + content[stop:]

    with ExitStack() as stack:
        stack.enter_context(damaged(target.path, damage))
        if target.digests:
            stack.enter_context(damaged(target.digests, lambda _: target.seal()))
        return answer(what, target)


def answer(what: str, target: Target) -> Trial:
    """What comes of reading a file as it is now."""
    trial, cost = _asked(what, target)
    if cost and not trial.fault:  # garbage collected meanwhile, for one, costs time: what a file costs, it costs again
        trial, cost = _asked(what, target)
    return replace(trial, fault=trial.fault or cost)


def _asked(what: str, target: Target) -> tuple[Trial, str]:
    """The answer, and what it cost where that is more than an answer may take."""
    memory, began = _kilobytes("VmRSS"), time.process_time()
    Path("/proc/self/clear_refs").write_text("5")  # peaks are counted from here
    try:
        with _bounded_memory(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            target.read(target.path)
        outcome, fault = READ, ""
    except EquimodError as error:
        outcome = REFUSED
        fault = "" if _names(str(error), target.path) else f"{what}: the error does not name it ({error})"
    except Exception as error:
        outcome, fault = "another error", f"{what}: {error!r}"
    seconds, more = time.process_time() - began, (_kilobytes("VmHWM") - memory) * 1024
    cost = f"{what}: it took {seconds:.1f} s of the processor and {more / 2**20:,.0f} MiB"
    return Trial(outcome, fault), cost if seconds > SECONDS or more > BYTES else ""


@contextmanager
def _bounded_memory() -> Iterator[None]:
    """What asks for far more memory than is allowed is refused inside, before it hurts others."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_kilobytes("VmData") * 1024 + 8 * BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _names(text: str, path: Path) -> bool:
    """Whether an error names a file, the folder that it lies in, or an image that a list names."""
    return path.name in text or path.parent.name in text or ".jpg" in text


def _kilobytes(name: str) -> int:
    """What Linux says of this process's memory."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def _of_runs(folder: Path) -> dict[str, Target]:
    run = toys.run(folder)
    newest = kept(run / CHECKPOINTS)[0]
    opened = Checkpoint.open(newest)
    records = open_records(folder / "tree")
    state = build_train_state(opened.config, records, 3, DistInfo(0, 0, 1, torch.device("cpu")))

    def resume(_: Path) -> None:
        restore(Checkpoint.open(newest), state, opened.state.records)

    def resealed() -> bytes:
        return Digests.of(newest, FILES).pack()

    return {
        **{f"{name} of a checkpoint": Target(newest / name, resume, newest / DIGESTS, resealed) for name in FILES},
        "names of momenta": Target(newest / OPTIMIZER, resume, newest / DIGESTS, resealed, part=slice(8, HEAD)),
        "digests of a checkpoint": Target(newest / DIGESTS, lambda _: Checkpoint.open(newest)),
        "newest": Target(run / CHECKPOINTS / POINTER, lambda path: first_sound(path.parent, Checkpoint.open, print)),
        "recipe": Target(run / CONFIG, read_recipe),
        "metrics": Target(run / "metrics.jsonl", read_events),
        "scores": Target(run / EVAL, lambda _: read_scores(run)),
    }


def _of_records(folder: Path) -> dict[str, Target]:
    paths = toys.records(folder)
    tar, foreign = paths["tar"], folder / "foreign.beton"
    foreign.write_bytes(paths["beton"].read_bytes().replace(MAGIC, bytes(len(MAGIC))))
    manifest, samples = load_manifest(tar), len(open_records(tar))

    def resealed() -> bytes:
        shards = tuple(describe_shard(tar, n, shard.samples) for n, shard in enumerate(manifest.shards))
        files = Digests.of(tar, manifest.files).files
        return replace(manifest, files=files, shards=shards).to_json(FORM)

    def resealed_itself() -> bytes:
        content = (tar / MANIFEST).read_bytes()
        try:
            fields = json.loads(content)
            return seal({name: value for name, value in fields.items() if name != "sha256"})
        except (ValueError, AttributeError):
            return content

    def whole(_: Path) -> str:
        return everything(tar)

    of_tar = [*manifest.files, manifest.shards[0].name]
    return {
        **{f"{name} of shards": Target(tar / name, whole, tar / MANIFEST, resealed) for name in of_tar},
        "manifest of shards": Target(tar / MANIFEST, whole, tar / MANIFEST, resealed_itself),
        "head of a .beton": Target(paths["beton"], everything, part=slice(0, HEAD)),
        "head of another program's .beton": Target(foreign, everything, part=slice(0, HEAD)),
        "table of another program's .beton": Target(foreign, everything, part=slice(-samples * ENTRY.itemsize, None)),
        "entry of a conversion": _of_conversion(folder),
    }


def _of_conversion(folder: Path) -> Target:
    """The entry of a finished shard, as a conversion that goes on finds it."""
    source, output = open_source(folder / "tree"), folder / "interrupted"
    (output / PROGRESS).mkdir(parents=True)
    task = shard_tasks(source, output, toys.SETTINGS)[0]
    start_worker(SPAWN.Event(), SPAWN.Value("q", 0))
    done = convert_shard(task)

    def read(_: Path) -> None:
        found = taken_over(task)
        if found is not None and found != done:
            raise AssertionError(f"it is taken over as {found}")

    return Target(task.entry, read)


def _of_sources(folder: Path) -> dict[str, Target]:
    tree, targets = toys.tree(folder), {}
    image = Image.open(tree / "class 0" / "000.jpg")
    for form, options in _IMAGES.items():
        path = folder / form / "class 0" / f"changed.{form.lower()}"
        path.parent.mkdir(parents=True)
        image.convert("RGBA" if form in ("PNG", "WEBP") else "RGB").save(path, form.split()[0], **options)
        shutil.copy(tree / "class 1" / "001.jpg", path.parent)
        targets[f"{form} image"] = Target(path, _one_verdict)
    archives = {"tar": ".tar", "zip": ".zip", "gztar": ".tar.gz"}
    for form, suffix in archives.items():
        path = Path(shutil.make_archive(str(folder / "archive"), form, tree))
        targets[f"{suffix} of images"] = Target(path, _images_of)
    shard = Path(shutil.copy(toys.shards(folder) / "shard-000000.tar", folder / "foreign.tar"))
    targets["webdataset shard"] = Target(shard, _images_of)
    names = sorted(path.relative_to(folder) for path in tree.rglob("*.jpg"))
    lists = {".txt": "\t", ".csv": ","}
    for suffix, between in lists.items():
        path = folder / f"images{suffix}"
        path.write_text("".join(f"{name}{between}{name.parent.name}\n" for name in names))
        targets[f"{suffix} list"] = Target(path, everything)
    factors = tree / "factors.csv"
    factors.write_text("file,hue\n" + "".join(f"{name.relative_to('tree')},{n}\n" for n, name in enumerate(names)))
    records = open_records(tree)
    return targets | {"factors": Target(factors, lambda _: read_factors(tree, records))}


def _one_verdict(path: Path) -> None:
    """Decode an image as the converter and as the loader do. Raises AssertionError where they do not agree, and what
    the loader raises for a folder that holds it."""
    content = path.read_bytes()
    verdicts: list[bytes | None] = []
    for stored in (lambda: check_image(content, Encoding(lossless=True)).content, lambda: content):
        try:
            verdicts.append(decode(stored()).tobytes())
        except DamagedImageError:
            verdicts.append(None)
    if verdicts[0] != verdicts[1]:
        raise AssertionError("converter and loader do not agree")
    everything(path.parents[1])


def _images_of(path: Path) -> None:
    """Read all images of an archive; damaged ones are left out, as by a conversion with --on-error skip."""
    source = open_source(path)
    for item in source.items:
        with suppress(DamagedImageError):
            source.reader.load(item, Encoding())
