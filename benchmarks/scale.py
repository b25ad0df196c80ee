"""What grows with the data: `python benchmarks/scale.py disk|features --folder DIR`.

disk: how much is read from the disk, and in how many requests, where the images do not fit into memory. Records of
synthetic images are made in DIR once. The process that reads them has as much memory as is said, by a cgroup (v1, as
root), and may ask for no more than so many requests a second. Linux only.

features: what evaluation takes on features that are kept on the disk. Drawn ones are made in DIR once.
"""

from __future__ import annotations

import io
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from PIL import Image

from equimod.benchmarks.result import present
from equimod.pipelines.build import Pipeline, build_pipeline
from equimod.pipelines.conversion import open_source
from equimod.pipelines.conversion.convert import convert
from equimod.pipelines.conversion.convert_beton import convert_to_beton
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.pipelines.errors import EquimodError
from equimod.pipelines.policy import POLICIES
from equimod.pipelines.records import open_records
from equimod.train.command import run_command
from equimod.train.embedding.blocks import BATCHES, Blocks, Plan
from equimod.train.evaluation.features import BATCH_SIZE, Features
from equimod.train.evaluation.knn import KnnSettings, votes
from equimod.train.evaluation.linear_probe import ProbeSettings, fit
from equimod.train.evaluation.table import Table

CGROUPS = Path("/sys/fs/cgroup")
DIFFERENT = 64
"""Images that the others are copies of."""
_MORE = 2**26  # bytes, of batches that come and go


class ScaleError(EquimodError):
    """What cannot be measured here: the message says why, in one line."""


@dataclass(frozen=True, kw_only=True)
class KeptFeatures:
    """Load features, find neighbours, train a classifier on them."""

    folder: Path
    """Where the features are made, and found again."""
    images: int = 1_281_167
    """Training images."""
    features: int = 512
    """Features of an image."""
    classes: int = 1000
    """Classes."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What they are kept in."""
    queries: int = 1024
    """Images whose neighbours are looked for."""
    steps: int = 1000
    """Steps of the classifier."""
    output: Path | None = None
    """JSON file for the result."""

    def measure(self) -> dict[str, Any]:
        """What each part took."""
        context = get_context("spawn")
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=_evaluate, args=(self, _features(self), send))
        process.start()
        send.close()
        try:
            found = receive.recv()
        except EOFError:
            raise ScaleError("the process that evaluates ended; its own message says why") from None
        finally:
            process.join()
        options = {key: value for key, value in asdict(self).items() if key not in ("folder", "output")}
        return {"benchmark": "features", "settings": options, **found}


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Read epochs of images that do not fit into memory, through the pipeline."""

    folder: Path
    """Where the images and records are made, and found again."""
    images: int = 40_000
    """Images."""
    kilobytes: int = 100
    """Size of an image."""
    format: Literal["tar", "beton"] = "tar"
    """Of the records."""
    memory: float = 0.25
    """Memory for images, as a share of all of them; 0: as much as there is."""
    requests: int | None = None
    """Requests a second that the disk answers; none: as many as it can."""
    window: int | None = None
    """--shuffle-window of the training."""
    batch_size: int = 256
    """Images of a batch."""
    epochs: int = 4
    """Epochs."""
    output: Path | None = None
    """JSON file for the result."""

    def measure(self) -> dict[str, Any]:
        """See `disk`."""
        return disk(self)


class _Cgroups:
    """Groups of the kernel that the reading process is put into: one for its memory, one for its requests."""

    def __init__(self) -> None:
        self._folders = [CGROUPS / kind / f"equimod-{os.getpid()}" for kind in ("memory", "blkio")]
        self.memory, self._blkio = self._folders

    @contextmanager
    def made(self) -> Iterator[None]:
        """Raises ScaleError where they cannot be made."""
        try:
            for folder in self._folders:
                folder.mkdir()
            yield
        except OSError as error:
            raise ScaleError(f"no cgroup can be made ({error}); run as root where there are cgroups v1") from error
        finally:
            for folder in self._folders:
                if folder.exists():
                    folder.rmdir()

    def enter(self) -> None:
        """Put this process into them."""
        for folder in self._folders:
            (folder / "cgroup.procs").write_text(str(os.getpid()))

    def allow_memory(self, more: int) -> None:
        """Limit the memory to what is in use and so many bytes."""
        used = int((self.memory / "memory.usage_in_bytes").read_text())
        (self.memory / "memory.limit_in_bytes").write_text(str(used + more))

    def allow_requests(self, device: str, requests: int) -> None:
        """Limit the requests a second to a disk."""
        (self._blkio / "blkio.throttle.read_iops_device").write_text(f"{device} {requests}")


def records(settings: Disk) -> Path:
    """The records of so many images, made where they are not there."""
    images = settings.folder / f"images-{settings.images}-{settings.kilobytes}"
    path = images.with_suffix(f".{settings.format}")
    if path.exists():
        return path
    rng, made = np.random.default_rng(0), []
    for number in range(settings.images):
        file = images / f"{number // 1000:05}" / f"{number % 1000:03}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists():
            made.append(file)
        elif number < DIFFERENT:
            file.write_bytes(_jpeg(rng, settings.kilobytes * 1024))
            made.append(file)
        else:
            os.link(made[number % DIFFERENT], file)
    source, conversion = open_source(images), ConversionSettings(workers=os.cpu_count() or 1)
    (convert if settings.format == "tar" else convert_to_beton)(source, path, conversion)
    return path


def _jpeg(rng: np.random.Generator, size: int) -> bytes:
    """A small image in a file of `size` bytes, most of which are comments."""
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
    content, comments = buffer.getvalue(), b""
    while (missing := size - len(content) - len(comments)) > 4:
        length = min(missing - 2, 65_535)
        comments += b"\xff\xfe" + length.to_bytes(2, "big") + rng.bytes(length - 2)
    return content[:2] + comments + content[2:]


def disk(settings: Disk) -> dict[str, Any]:
    """What each epoch read."""
    path = records(settings)
    size = int(open_records(path).length.sum())
    number = settings.folder.stat().st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    groups = _Cgroups() if settings.memory or settings.requests else None
    found: list[dict[str, Any]] = []
    with groups.made() if groups else nullcontext():
        if groups and settings.requests:
            groups.allow_requests(device, settings.requests)
        context = get_context("spawn")
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=_read, args=(path, settings, groups, device, send))
        process.start()
        send.close()
        try:
            while len(found) < settings.epochs:
                found.append(receive.recv())
                one = found[-1]
                print(f"epoch {len(found)}: {one['images_per_second']:,.0f} images/s", flush=True)
        except EOFError:
            raise ScaleError("the process that reads ended; its own message says why") from None
        finally:
            process.terminate()
            process.join()
    options = {key: value for key, value in asdict(settings).items() if key not in ("folder", "output")}
    name = "disk-random" if settings.window is None else "disk-window"
    return {"benchmark": name, "settings": options, "data_bytes": size, "epochs": found}


def _read(path: Path, settings: Disk, groups: _Cgroups | None, device: str, send: Any) -> None:
    """Read the epochs, in groups of the kernel, and send what each of them took."""
    if groups:
        groups.enter()

    def build() -> Pipeline:
        policy, records = POLICIES["simclr_cifar10"], open_records(path)
        return build_pipeline(records, policy, batch_size=settings.batch_size, seed=0, window=settings.window)

    next(build().decoded(0))  # what the process needs beside the images
    _drop(path)
    if groups and settings.memory:
        groups.allow_memory(_MORE + int(settings.memory * int(open_records(path).length.sum())))
    pipeline = build()
    for epoch in range(settings.epochs):
        began, bytes_before, requests_before = time.perf_counter(), _bytes_read(), _requests(device)
        images = sum(len(batch) for batch in pipeline.decoded(epoch))
        seconds, requests = time.perf_counter() - began, _requests(device)
        send.send(
            {
                "images_per_second": images / seconds,
                "bytes": _bytes_read() - bytes_before,
                "requests": None if requests is None or requests_before is None else requests - requests_before,
                "resident_bytes": _resident(),
            }
        )


def _features(settings: KeptFeatures) -> Blocks:
    """Drawn features, made where they are not there."""
    x = POLICIES["simclr_cifar10"].x
    form = (settings.images, settings.features, settings.dtype, BATCH_SIZE, BATCHES)
    blocks = Blocks(
        settings.folder / f"features-{'-'.join(map(str, form[:3]))}",
        Plan("drawn", "", x, settings.dtype, "", "", "", *form),
    )
    blocks.folder.mkdir(parents=True, exist_ok=True)
    rows = BATCH_SIZE * BATCHES
    for number in blocks.begin():
        generator = torch.Generator().manual_seed(number)
        count = min(rows, settings.images - number * rows)
        blocks.write(number, torch.randn(count, settings.features, generator=generator))
    return blocks


def _evaluate(settings: KeptFeatures, blocks: Blocks, send: Any) -> None:
    """Do what evaluators do, and send what it took."""
    found: dict[str, float] = {"resident_before_bytes": _resident()}
    began = time.perf_counter()
    label = torch.arange(settings.images) % settings.classes
    train = Features(blocks.load(), label, tuple(map(str, range(settings.classes))))
    found["load_seconds"], began = time.perf_counter() - began, time.perf_counter()
    votes(train, train.h[: settings.queries].float(), KnnSettings())
    found["queries_per_second"] = settings.queries / (time.perf_counter() - began)
    few = ProbeSettings(epochs=1)
    steps = min(settings.steps, settings.images // few.batch_size)
    order = torch.from_numpy(np.random.default_rng(0).permutation(settings.images))

    def batches(epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for rows in order[: steps * few.batch_size].split(few.batch_size):
            yield train.h[rows].float(), train.label[rows]

    began = time.perf_counter()
    fit(batches, steps, train, few)
    found["steps_per_second"] = steps / (time.perf_counter() - began)
    found["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    send.send(found)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _drop(path: Path) -> None:
    """Have the system forget what it holds of the records."""
    for file in [path] if path.is_file() else sorted(path.iterdir()):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _bytes_read() -> int:
    """What this process had the disk read."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


def _requests(device: str) -> int | None:
    """Reads that a disk has answered, of all processes; None where the system does not tell."""
    major, minor = device.split(":")
    for line in Path("/proc/diskstats").read_text().splitlines():
        fields = line.split()
        if fields[:2] == [major, minor]:
            return int(fields[3])
    return None


def rows(result: dict[str, Any]) -> list[Table]:
    """The table of either benchmark."""
    return _disk_rows(result) if "epochs" in result else _features_rows(result)


def _features_rows(result: dict[str, Any]) -> list[Table]:
    gib = result["settings"]["images"] * result["settings"]["features"] / 2**30
    gib *= {"float32": 4, "bfloat16": 2}[result["settings"]["dtype"]]
    cells = [
        f"{gib:.2f}",
        f"{result['load_seconds']:.0f}",
        f"{result['queries_per_second']:,.0f}",
        f"{result['steps_per_second']:,.0f}",
        f"{result['peak_bytes'] / 2**30:.2f}",
    ]
    titles = [
        "features, GiB",
        "loaded in, s",
        "neighbours of images/s",
        "steps of the classifier/s",
        "peak memory, GiB",
    ]
    return [Table(titles, [cells])]


def _disk_rows(result: dict[str, Any]) -> list[Table]:
    images = result["settings"]["images"]
    cells = [
        [
            str(number),
            f"{epoch['images_per_second']:,.0f}",
            f"{epoch['bytes'] / result['data_bytes']:.2f}",
            "–" if epoch["requests"] is None else f"{epoch['requests'] / images:.3f}",
            f"{epoch['resident_bytes'] / 2**20:,.0f}",
        ]
        for number, epoch in enumerate(result["epochs"], 1)
    ]
    return [Table(["epoch", "images/s", "read, of the data", "requests an image", "memory of the process, MiB"], cells)]


def caption(result: dict[str, Any]) -> str:
    """What stands under the table in a document."""
    settings = result["settings"]
    if "epochs" not in result:
        return (
            f"{settings['features']} drawn features of {settings['images']:,} images in {settings['dtype']}, "
            f"{settings['classes']:,} classes; k of {KnnSettings().k}, batches of {ProbeSettings().batch_size}."
        )
    size = result["data_bytes"]
    order = f"shuffled in windows of {settings['window']:,}" if settings["window"] else "in random order"
    memory = (
        f"{settings['memory']:.0%} of that as memory for images" if settings["memory"] else "as much memory as there is"
    )
    requests = f", a disk that answers {settings['requests']:,} requests a second" if settings["requests"] else ""
    return (
        f"{settings['images']:,} synthetic images of {settings['kilobytes']} KiB, {size / 2**20:,.0f} MiB of "
        f"{settings['format']} records, {order}, batches of {settings['batch_size']}, {memory}{requests}; decoded, "
        "cropped and resized to 32 pixels."
    )


COMMANDS: dict[str, Callable[..., Disk | KeptFeatures]] = {"disk": Disk, "features": KeptFeatures}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C."""
    given = list(sys.argv[1:] if argv is None else argv)

    def run() -> None:
        settings = tyro.extras.subcommand_cli_from_dict(COMMANDS, description=__doc__, args=given)
        present(settings.measure(), rows, "scale.py", given, settings.output)

    return run_command(run, again="run the same command again")


if __name__ == "__main__":
    sys.exit(main())
