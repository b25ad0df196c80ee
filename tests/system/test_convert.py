"""Conversions by several processes, killed ones, and full disks."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from fake_clock import FakeClock
from PIL import Image
from small_conversion import SHARD_SIZE, contents

from equimod.pipelines.conversion import open_source
from equimod.pipelines.conversion.convert import convert
from equimod.pipelines.conversion.convert_beton import convert_to_beton
from equimod.pipelines.conversion.settings import ConversionSettings
from equimod.pipelines.records import RecordsError, open_records
from equimod.pipelines.records.folder import scan_tree
from equimod.pipelines.records.protocol import fingerprint

TOOL = Path(__file__).parents[2] / "tools" / "convert_imagenet.py"


def command(source: Path, output: Path, *options: str) -> list[str]:
    return [sys.executable, str(TOOL), str(source), str(output), "--shard-size", str(SHARD_SIZE), *options]


def run(source: Path, output: Path, *options: str, limit: Callable[[], None] | None = None) -> tuple[int, str]:
    """Exit code and what was printed."""
    done = subprocess.run(
        command(source, output, *options), capture_output=True, text=True, check=False, cwd="/", preexec_fn=limit
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def test_number_of_workers_changes_no_byte(
    source: Path, expected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeClock(monkeypatch, a_look=11.0)
    convert(source, tmp_path / "out", ConversionSettings(workers=3, shard_size=SHARD_SIZE))
    assert contents(tmp_path / "out") == contents(expected)
    assert capsys.readouterr().err.splitlines()[-1].startswith("converting: 24 of 24 images")


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited a minute in vain")


@pytest.fixture
def blocked(source: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A conversion to tmp_path/out that is at its last image for seconds, all other shards being in place."""
    slow = source / "class_2" / "007.jpg"
    Image.new("L", (14_000, 14_000)).save(slow, "PNG", compress_level=1)
    process = subprocess.Popen(
        command(source, tmp_path / "out", "--workers", "2"),
        stderr=subprocess.PIPE,
        start_new_session=True,
        # A shell lets what it starts in the background ignore Ctrl-C, and so this test's parents may be.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        wait_for(lambda: len(list((tmp_path / "out").glob(".progress/0*.json"))) == 4)
        wait_for(lambda: any((tmp_path / "out").glob(".partial-*")))
        yield process, slow
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_killed_conversion_goes_on_to_the_same_bytes(
    blocked: tuple[subprocess.Popen[bytes], Path], image_tree: Path, source: Path, expected: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    process, slow = blocked
    workers = psutil.Process(process.pid).children(recursive=True)
    assert workers
    process.kill()
    process.wait()
    wait_for(lambda: not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers))
    with pytest.raises(RecordsError, match="run the converter again"):
        open_records(output)
    assert not (output / "shard-000004.tar").exists()
    shutil.copy2(image_tree / "class_2" / "007.jpg", slow)
    before = {path.name: path.stat().st_mtime_ns for path in output.glob("shard-*")}
    assert convert(source, output, ConversionSettings(workers=2, shard_size=SHARD_SIZE)).written == 1
    assert contents(output) == contents(expected)
    assert all((output / name).stat().st_mtime_ns == written for name, written in before.items())


@pytest.mark.parametrize(
    ("kill", "stop", "code"),
    [(os.killpg, signal.SIGINT, 130), (os.kill, signal.SIGTERM, 143)],  # Ctrl-C reaches the workers as well
)
def test_stop_signal_is_one_line_and_its_exit_code(
    blocked: tuple[subprocess.Popen[bytes], Path],
    tmp_path: Path,
    kill: Callable[[int, int], None],
    stop: signal.Signals,
    code: int,
) -> None:
    process, _ = blocked
    kill(process.pid, stop)
    assert process.wait(60) == code
    assert process.stderr is not None
    assert process.stderr.read() == b"interrupted; run the same command to continue\n"
    assert not list((tmp_path / "out").glob(".partial-*"))


def test_two_converters_do_not_share_an_output(
    blocked: tuple[subprocess.Popen[bytes], Path], source: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecordsError, match="being written by another process"):
        convert(source, tmp_path / "out", ConversionSettings(workers=1, shard_size=SHARD_SIZE))


def test_full_disk_is_one_line_and_the_rerun_completes(source: Path, tmp_path: Path) -> None:
    with (source / "class_1" / "002.jpg").open("ab") as file:
        file.write(bytes(50_000))  # bytes behind the end of a JPEG are no damage
    convert(source, tmp_path / "whole", ConversionSettings(workers=1, shard_size=SHARD_SIZE))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # too little for that shard alone

    output = tmp_path / "out"
    code, printed = run(source, output, "--workers", "1", limit=limit)
    assert code == 1
    assert "cannot be written: File too large; make room and run the same command again" in printed
    assert printed.count("\n") == 1
    assert {path.name for path in output.glob("*.tar")} >= {"shard-000000.tar", "shard-000001.tar"}
    assert not (output / "shard-000002.tar").exists()
    assert not list(output.glob(".partial-*"))
    assert run(source, output)[0] == 0
    assert contents(output) == contents(tmp_path / "whole")


def test_imagenet_converts_with_no_image_rejected(imagenet_sample: Path, tmp_path: Path) -> None:
    manifest = convert(imagenet_sample, tmp_path / "out", ConversionSettings(workers=2, shard_size=100)).manifest
    assert manifest.samples == len(scan_tree(imagenet_sample).names) == 334
    assert manifest.left_out == manifest.remarks == ()
    assert fingerprint(open_records(tmp_path / "out")).table == fingerprint(open_records(imagenet_sample)).table


def test_the_number_of_workers_changes_no_byte_of_a_beton(image_tree: Path, tmp_path: Path) -> None:
    for raw in (False, True):
        for workers in (1, 3):
            convert_to_beton(
                open_source(image_tree),
                tmp_path / f"{workers}{raw}.beton",
                ConversionSettings(workers=workers, raw=raw),
            )
        assert (tmp_path / f"1{raw}.beton").read_bytes() == (tmp_path / f"3{raw}.beton").read_bytes()
