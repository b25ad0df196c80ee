"""FFCV's Loader over a .beton file, with one decode a sample for x and all views.

Boxes come from the requests, so the views are those of every other backend. Their pixels are not quite: FFCV resizes by
area and decodes with the fast DCT. It crops whole pixels, so in smaller copies an edge of a box moves by up to half a
pixel of the copy. What is known to go wrong in ffcv 1.0.2 is fenced here:
- an exception in its thread leaves the caller waiting for ever: `_Epoch` hands it over;
- an early break leaves the thread behind: `_Epoch.close` ends and joins it;
- batches share buffers: images are copied out before the buffer is used again;
- a corrupt JPEG becomes a black image: the decoder's return code is looked at;
- it sets the number of torch's threads for the whole process: `kept_torch_threads` undoes that.
Not run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from queue import Full, Queue
from typing import Any

import numba
import numpy as np
import torch
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.libffcv import imdecode, resize_crop
from ffcv.loader import Loader
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.state import State
from numpy.typing import NDArray
from torch import Tensor

from equimod.pipelines.backends import BackendConfig, BackendUnavailableError, Images, Request, kept_torch_threads
from equimod.pipelines.decode import decode_sample
from equimod.pipelines.geometry import center_geometry, whole_box
from equimod.pipelines.records.beton import JPEG, BetonRecords

_BATCHES_AHEAD = 2
_POLL_SECONDS = 0.1


class FfcvBackend:
    """Decodes, crops and resizes in FFCV's compiled pipeline, which is built once and serves every epoch."""

    def __init__(self, config: BackendConfig) -> None:
        records = config.records
        if not isinstance(records, BetonRecords) or not records.path.is_file():
            raise BackendUnavailableError(
                "backend=ffcv reads .beton files on a disk only; convert the data to one, or take another backend"
            )
        self._records, self._policy, self._with_x = records, config.policy, config.with_x
        self._workers = min(config.workers, numba.config.NUMBA_NUM_THREADS)
        self._pin_memory = config.device.type == "cuda"
        outputs = config.with_x + len(config.policy.views)
        self._cut = _cutter(resize_crop, outputs, config.policy.size, config.with_x)
        with kept_torch_threads():
            self._loader = Loader(
                str(records.path),
                batch_size=config.batch_size,
                num_workers=self._workers,
                os_cache=True,
                seed=0,  # none would be drawn from numpy's global generator
                batches_ahead=0,
                pipelines={
                    name: [_Decoder(outputs, config.policy.size, config.with_x)]
                    if name == records.image_field
                    else None
                    for name in records.fields
                },
            )

    def load(self, requests: Iterator[Request]) -> Iterator[Images]:
        """See `Backend.load`."""
        epoch = _Epoch(self._loader, self._workers, requests, self._batch)
        try:
            yield from epoch.images()
        finally:
            epoch.close()

    def _batch(self, request: Request, run: Callable[[Request, NDArray[np.int64]], Any]) -> Images:
        for position in request.position.tolist():
            self._records.read(position)  # holds it to its checksum, which ffcv does not know
        geometry = self._geometry(request)
        pixels, status = run(request, geometry)
        for row in np.flatnonzero(status[:, 0]):  # a mere warning too: what is damage, decode_sample says
            self._cut(decode_sample(self._records, int(request.position[row])), geometry[row], pixels[row])
        copies = [self._copy(pixels[:, output]) for output in range(pixels.shape[1])]
        return Images(copies[0] if self._with_x else None, tuple(copies[self._with_x :]))

    def _geometry(self, request: Request) -> NDArray[np.int64]:
        """(N,K,4): for x the size of the whole image after its resize and the corner of the crop, for views the box."""
        stored_size = self._records.stored_size[request.position]
        columns = [whole_box(boxes, stored_size).numpy() for boxes in request.boxes]
        if self._with_x:
            size = self._records.size[request.position].tolist()
            places = [center_geometry(width, height, self._policy.x) for width, height in size]
            columns.insert(0, np.array([(*size, *corner) for size, corner in places], dtype=np.int64))
        return np.stack(columns, axis=1)

    def _copy(self, pixels: NDArray[np.uint8]) -> Tensor:
        copy = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=self._pin_memory)
        copy.numpy()[...] = pixels
        return copy.permute(0, 3, 1, 2)


class _Decoder(SimpleRGBImageDecoder):
    """Decodes an image once and cuts `outputs` images of `size` pixels out of it, the first one x where `with_x`."""

    def __init__(self, outputs: int, size: int, with_x: bool) -> None:
        super().__init__()
        self._outputs, self._size, self._with_x = outputs, size, with_x

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, tuple[AllocationQuery, ...]]:
        images, byte = (self._outputs, self._size, self._size, 3), np.dtype("u1")
        memory = (
            AllocationQuery(images, byte),
            AllocationQuery((1,), np.dtype("i8")),  # what libjpeg-turbo returned
            AllocationQuery((self._outputs, 4), np.dtype("i8")),  # geometry, written before a batch is run
        )
        return replace(previous_state, jit_mode=True, shape=images, dtype=byte), memory

    def generate_code(self) -> Callable[..., Any]:
        read, rows = self.memory_read, Compiler.get_iterator()
        decode_jpeg, resize = Compiler.compile(imdecode), Compiler.compile(resize_crop)
        cut = Compiler.compile(_cutter(resize, self._outputs, self._size, self._with_x))

        # Compiled by numba: plain loops over arrays.
        def decode(batch_indices: Any, memory: Any, metadata: Any, storage_state: Any) -> Any:
            images, status, geometry = memory
            for row in rows(len(batch_indices)):
                image = metadata[batch_indices[row]]
                content = read(image["data_ptr"], storage_state)
                height, width = np.int64(image["height"]), np.int64(image["width"])
                if image["mode"] == JPEG:
                    pixels = np.empty((height, width, 3), np.uint8)
                    status[row, 0] = decode_jpeg(
                        content, pixels, height, width, height, width, 0, 0, 1, 1, False, False
                    )
                else:
                    pixels = content.reshape(height, width, 3)
                    status[row, 0] = 0
                cut(pixels, geometry[row], images[row])
            return images, status

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode


def _cutter(resize: Callable[..., None], outputs: int, side: int, with_x: bool) -> Callable[..., None]:
    """The function that cuts the images of a sample, uint8 (K,S,S,3), out of its pixels (H,W,3), by `resize`."""
    first_view = int(with_x)

    def cut(pixels: Any, geometry: Any, images: Any) -> None:
        height, width = pixels.shape[0], pixels.shape[1]
        if first_view:
            new_width, new_height, left, top = geometry[0]
            whole = np.empty((new_height, new_width, 3), np.uint8)
            resize(pixels, 0, height, 0, width, whole)
            images[0] = whole[top : top + side, left : left + side]
        for view in range(first_view, outputs):
            x, y, box_width, box_height = geometry[view]
            resize(pixels, y, y + box_height, x, x + box_width, images[view])

    return cut


class _Epoch(EpochIterator):
    """ffcv's thread of an epoch, fed by requests: what it raises reaches the caller, and it ends when it is closed."""

    def __init__(
        self,
        loader: Loader,
        workers: int,
        requests: Iterator[Request],
        batch: Callable[[Request, Callable[[Request, NDArray[np.int64]], Any]], Images],
    ) -> None:
        self._workers, self._requests, self._batch = workers, requests, batch
        self._answers: Queue[Images | BaseException | None] = Queue(_BATCHES_AHEAD)
        super().__init__(loader, order=[])  # which starts the thread

    def images(self) -> Iterator[Images]:
        while (answer := self._answers.get()) is not None:
            if isinstance(answer, BaseException):
                raise answer
            yield answer

    def run(self) -> None:
        numba.set_num_threads(self._workers)  # of this thread
        try:
            for request in self._requests:
                if not self._put(self._batch(request, self._run_batch)):
                    return
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _run_batch(self, request: Request, geometry: NDArray[np.int64]) -> Any:
        (memory,) = self.memory_allocations["operation"].values()
        memory[2][0, : len(geometry)] = geometry
        ((pixels, status),) = self.run_pipeline(0, request.position.astype(np.uint64), 0, None)
        return pixels, status

    def _put(self, answer: Images | BaseException | None) -> bool:
        while not self.terminate_event.is_set():
            try:
                self._answers.put(answer, timeout=_POLL_SECONDS)
                return True
            except Full:
                pass
        return False

    def close(self) -> None:
        """End the thread and wait for it."""
        super().close()
        self.closed = True
        if self.is_alive():
            self.join()
