"""The downloads of ImageNet and CIFAR-10 in small: the same files, folders and tables, other pixels."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np

CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def write_cifar10(root: Path, *, rows: int = 12) -> dict[str, np.ndarray]:
    """`root`/cifar-10-batches-py with `rows` images a batch; the pixels (N,32,32,3) of each split."""
    rng = np.random.default_rng(0)
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": CIFAR_CLASSES}))
    pixels: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
        data = rng.integers(0, 256, (rows, 3072), dtype=np.uint8)
        labels = [row % 10 for row in range(rows)]
        files = [f"{CIFAR_CLASSES[label]}_s_{row:06d}.png" for row, label in enumerate(labels)]
        batch = {"data": data, "labels": labels, "filenames": files}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
        pixels["test" if name == "test_batch" else "train"].append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return {split: np.concatenate(parts) for split, parts in pixels.items()}


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Append a file to an archive."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def write_train_archive(path: Path, tree: Path) -> None:
    """ILSVRC2012_img_train.tar of an ImageFolder tree: a tar of class tars, in no particular order."""
    with tarfile.open(path, "w") as outer:
        for folder in sorted(tree.iterdir(), reverse=True):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for image in sorted(folder.iterdir(), reverse=True):
                    add(inner, image.name, image.read_bytes())
            add(outer, f"{folder.name}.tar", buffer.getvalue())


def write_val_archives(folder: Path, images: dict[str, list[bytes]]) -> None:
    """ILSVRC2012_img_val.tar and the devkit, from images by class; the classes take turns in the numbering."""
    from scipy.io import savemat

    wnids = sorted(images)
    ids = {wnid: 1000 - number for number, wnid in enumerate(wnids)}  # not in the order of the WordNet IDs
    turns = [
        (wnid, content)
        for row in range(max(map(len, images.values())))
        for wnid in reversed(wnids)
        for content in images[wnid][row : row + 1]
    ]
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as archive:
        for number, (_, content) in enumerate(turns, 1):
            add(archive, f"ILSVRC2012_val_{number:08d}.JPEG", content)
    kind = np.dtype([("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")])
    rows = [(ids[wnid], wnid, "word", "gloss", 0) for wnid in wnids] + [(1001, "n99999999", "thing", "gloss", 3)]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, dtype=kind)[:, None]})
    truth = "".join(f"{ids[wnid]}\n" for wnid, _ in turns).encode()
    with tarfile.open(folder / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        add(archive, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        add(archive, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth)
