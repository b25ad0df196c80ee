"""NVIDIA DALI decodes, crops and resizes: on the GPU where the images are for one, otherwise on the CPU.

Bytes and boxes come from outside (`fn.external_source`), so order and parameters are this project's, and the views are
those of every other backend. A box with fractions, of a smaller copy, is a region of DALI's resize, whose filter
reaches over the edges as the native kernel's does; the edges are float32, counted from the corner of what is sliced.
DALI stops at crop and resize: its colour operators are not torchvision's. One definition serves CPU and GPU. Not run on
a GPU yet; a test builds and serializes that form.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, types
from nvidia.dali.data_node import DataNode

from equimod.pipelines.backends import BackendConfig, Images, Request
from equimod.pipelines.codec import JPEG_START, PNG_START, DamagedImageError, encode_png, read_jpeg_header
from equimod.pipelines.decode import decode_sample, undecodable
from equimod.pipelines.geometry import center_geometry
from equimod.pipelines.policy import AugmentationPolicy, Interpolation, ViewPolicy
from equimod.pipelines.records.protocol import RecordsError
from equimod.pipelines.resize import crop_specs, regions_of_interest

_BATCHES_AHEAD = 2
_INTERPOLATION = {"bicubic": types.INTERP_CUBIC, "bilinear": types.INTERP_LINEAR}
_JPEG_END = b"\xff\xd9"
_TAIL = 1024  # bytes at the end of a whole JPEG that hold its end marker: some files go on a little after it
_RGB_PNG = bytes((8, 2))  # bit depth and colour type, at byte 24


class DaliBackend:
    """Decodes, crops and resizes in a DALI pipeline that is built once and serves every epoch."""

    def __init__(self, config: BackendConfig) -> None:
        self._records, self._policy, self._with_x = config.records, config.policy, config.with_x
        device_id = (config.device.index or 0) if config.device.type == "cuda" else None
        self._settings = {"batch_size": config.batch_size, "num_threads": config.workers, "device_id": device_id}
        self._idle = [self._built()]

    def _built(self) -> Pipeline:
        gpu = self._settings["device_id"] is not None
        pipeline = graph(self._policy, with_x=self._with_x, pixels=self._records.raw, gpu=gpu, **self._settings)
        pipeline.build()
        return pipeline

    def load(self, requests: Iterator[Request]) -> Iterator[Images]:
        """See `Backend.load`. Runs at the same time have a pipeline each: one would mix up their batches."""
        pipeline = self._idle.pop() if self._idle else self._built()
        pending: deque[Request] = deque()
        try:
            for request in requests:
                self._start(pipeline, request)
                pending.append(request)
                if len(pending) > _BATCHES_AHEAD:
                    yield self._finished(pipeline, pending.popleft())
            while pending:
                yield self._finished(pipeline, pending.popleft())
        finally:
            for _ in pending:
                with suppress(RuntimeError):  # an error in a batch that nobody wants any more
                    self._outputs(pipeline)
            self._idle.append(pipeline)

    def _start(self, pipeline: Pipeline, request: Request) -> None:
        give = self._pixels if self._records.raw else self._encoded
        inputs: dict[str, Any] = {"image": [give(int(position)) for position in request.position]}
        size, stored_size = (a[request.position] for a in (self._records.size, self._records.stored_size))
        if self._with_x:
            places = [center_geometry(width, height, self._policy.x) for width, height in size.tolist()]
            resized, corner = (np.array(column) for column in zip(*places, strict=True))
            edges = {"x_start": corner, "x_end": corner + self._policy.x.size}  # of the crop, in the resized image
            inputs |= {name: (edge * stored_size / resized)[:, ::-1].astype(np.float32) for name, edge in edges.items()}
        for number, (boxes, view) in enumerate(zip(request.boxes, self._policy.views, strict=True)):
            inputs |= view_inputs(number, boxes.numpy(), view, stored_size)
        for name, batch in inputs.items():
            pipeline.feed_input(name, batch)
        pipeline.schedule_run()

    def _encoded(self, position: int) -> NDArray[np.uint8]:
        """The file where DALI decodes it as Pillow does; otherwise its pixels as PNG."""
        content = self._records.read(position)
        assert not isinstance(content, np.ndarray)
        if bytes(content[:2]) == JPEG_START:
            try:
                header = read_jpeg_header(content)
            except DamagedImageError as error:
                raise undecodable(self._records, position, error) from error
            plain = header.orderly and not header.printed and not header.many_scans
            known = plain and _JPEG_END in bytes(content[-_TAIL:])
        else:
            known = bytes(content[:8]) == PNG_START and bytes(content[24:26]) == _RGB_PNG
        return np.frombuffer(content if known else encode_png(decode_sample(self._records, position)), np.uint8)

    def _pixels(self, position: int) -> NDArray[np.uint8]:
        return decode_sample(self._records, position)

    def _outputs(self, pipeline: Pipeline) -> Any:
        """Of the batch that was scheduled first: on a GPU in the order of the current stream, without a wait."""
        if self._settings["device_id"] is None:
            return pipeline.outputs()
        return pipeline.outputs(cuda_stream=torch.cuda.current_stream(self._settings["device_id"]))

    def _finished(self, pipeline: Pipeline, request: Request) -> Images:
        try:
            outputs = [torch.from_dlpack(output.as_tensor()) for output in self._outputs(pipeline)]
        except RuntimeError as error:  # of the whole batch, whichever sample it is about
            for position in request.position:
                decode_sample(self._records, int(position))
            reason = str(error).partition("encountered:")[2].strip().partition("\n")[0] or error
            first = self._records.name(int(request.position[0]))
            raise RecordsError(f"DALI cannot decode a batch, whose first sample is {first}: {reason}") from error
        images = [output.permute(0, 3, 1, 2) for output in outputs]
        return Images(images[0] if self._with_x else None, tuple(images[1:] if self._with_x else images))


def view_inputs(
    number: int, boxes: NDArray[np.float64], view: ViewPolicy, stored_size: NDArray[np.int32]
) -> dict[str, NDArray[np.generic]]:
    """What view `number` slices out of each image, in whole pixels, and where in that its box lies, as (y, x)."""
    specs = crop_specs(boxes, view.crop.size, view.crop.interpolation)[:, None]
    x0, y0, x1, y1 = regions_of_interest(specs, stored_size).T
    corner = np.stack([x0, y0], axis=1)
    start, end = boxes[:, :2] - corner, boxes[:, :2] + boxes[:, 2:] - corner
    return {
        f"slice_start_{number}": corner.astype(np.int32),
        f"slice_shape_{number}": np.stack([x1 - x0, y1 - y0], axis=1).astype(np.int32),
        f"box_start_{number}": start[:, ::-1].astype(np.float32),
        f"box_end_{number}": end[:, ::-1].astype(np.float32),
    }


def graph(policy: AugmentationPolicy, *, with_x: bool, pixels: bool, gpu: bool, **settings: Any) -> Pipeline:
    """The pipeline: x and the views of a batch, uint8 (N,S,S,3), from bytes and boxes as `DaliBackend` feeds them.

    `pixels` says that images come decoded, `gpu` where to work; `settings` are those of DALI's Pipeline. The
    dynamic executor never reuses the memory of an output that is still in use, so outputs need not be copied.
    """
    pipeline = Pipeline(prefetch_queue_depth=1, exec_dynamic=True, **settings)  # batches ahead are scheduled by hand
    with pipeline:
        image = fn.external_source(name="image", dtype=types.UINT8, ndim=3 if pixels else 1)
        if not pixels:
            device = "mixed" if gpu else "cpu"
            # The GPU's way to scale chroma up is another one unless it is told to be libjpeg's.
            image = fn.decoders.image(
                image, device=device, output_type=types.RGB, adjust_orientation=False, jpeg_fancy_upsampling=True
            )
        elif gpu:
            image = image.gpu()
        outputs = []
        if with_x:
            place = {"roi_start": _input("x_start", types.FLOAT), "roi_end": _input("x_end", types.FLOAT)}
            outputs.append(_resized(image, policy.x.interpolation, policy.x.size, **place))
        for number, view in enumerate(policy.views):
            around = fn.slice(image, _input(f"slice_start_{number}"), _input(f"slice_shape_{number}"), axes=[1, 0])
            place = {f"roi_{end}": _input(f"box_{end}_{number}", types.FLOAT) for end in ("start", "end")}
            outputs.append(_resized(around, view.crop.interpolation, view.crop.size, **place))
        pipeline.set_outputs(*outputs)
    return pipeline


def _input(name: str, dtype: Any = types.INT32) -> DataNode:
    return fn.external_source(name=name, dtype=dtype, ndim=1)


def _resized(image: DataNode, mode: Interpolation, size: int, **region: DataNode) -> DataNode:
    how = {"interp_type": _INTERPOLATION[mode], "antialias": True, "subpixel_scale": False}
    return fn.resize(image, size=[size, size], **how, **region)
