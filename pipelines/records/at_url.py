"""Records at a URL: what opening them needs is brought here whole, images in blocks when they are used."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from equimod.pipelines.progress import Progress
from equimod.pipelines.records.beton import SUFFIX, BetonRecords
from equimod.pipelines.records.manifest import Manifest
from equimod.pipelines.records.protocol import RecordsError
from equimod.pipelines.records.remote import Remote, described, fetch, keep
from equimod.pipelines.records.tar import FORM, MANIFEST, TarRecords
from equimod.pipelines.stored import FileDigest


def open_at_url(url: str) -> TarRecords | BetonRecords:
    """The records of either format at a URL. Raises RecordsError where there are none or they cannot be fetched."""
    with Progress(f"opening {url}", "files") as progress:
        return _open(url, progress)


def _open(url: str, progress: Progress) -> TarRecords | BetonRecords:
    if url.endswith(SUFFIX):
        length, version = described(url)
        remote = Remote.of(url, f"{length} {version}")
        return BetonRecords(Path(PurePosixPath(url).name), remote.file("", length))
    try:
        content = fetch(f"{url}/{MANIFEST}")
    except RecordsError as error:
        raise RecordsError(f"{error}; a URL is that of a folder of records or of a {SUFFIX} file") from error
    manifest = Manifest.parse(content, f"{url}/{MANIFEST}", FORM)
    remote = Remote.of(url, FileDigest.of_content(content).sha256)
    folder = remote.folder / PurePosixPath(url).name
    keep(folder / MANIFEST, content)
    for name, digest in progress.count(manifest.files.items()):
        path = folder / name
        if not path.is_file() or FileDigest.of(path) != digest:
            keep(path, fetch(f"{url}/{name}"))
    return TarRecords(folder, lambda shard: remote.file(shard.name, shard.bytes))
