"""What contenders are called in tables and pictures, and the packages of those that have one of their own."""

from equimod.train.environment import OF_BACKENDS

LOADER_TITLES = {
    "decode": "decode alone",
    "native": "equimod, native backend",
    "dali": "equimod, DALI backend on the CPU",
    "ffcv": "equimod, FFCV backend",
    "torchvision": "torchvision and Pillow in a DataLoader",
    "spdl": "SPDL, its threads and decoder",
    "torchcodec": "torchcodec in a DataLoader",
    "kornia_rs": "kornia-rs in a DataLoader",
    "litdata": "litdata, from its own files",
}
AUGMENTER_TITLES = {
    "equimod": "equimod, on the batch",
    "one_by_one": "equimod's operators one by one, on the batch",
    "kornia": "kornia, on the batch",
    "torchvision": "torchvision v2, tensor by tensor",
    "pillow": "torchvision v2, Pillow image by Pillow image",
}
DISTRIBUTIONS = {**OF_BACKENDS, **{name: name for name in ("spdl", "torchcodec", "kornia_rs", "litdata", "kornia")}}
