"""Given weights into an encoder: what fits, what is left out as a classifier's, and what is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from equimod.models.encoder import Encoder
from equimod.models.settings import ConfigError

_HEADS = ("fc.", "head.", "heads.", "head_dist.", "classifier.")  # classifiers of torchvision and timm
_SHOWN = 4  # names of a kind in an error


def head_keys(encoder: Encoder, tensors: Mapping[str, Tensor]) -> list[str]:
    """The names that are a classifier's, and of no part of `encoder`, sorted."""
    own = encoder.state_dict()
    return sorted(name for name in tensors if name not in own and name.startswith(_HEADS))


def load_weights(encoder: Encoder, tensors: Mapping[str, Tensor], source: str) -> None:
    """Put weights by their names into `encoder`, all but those of `head_keys`. `source`: where they are from.

    Counters of batch norms may be missing, as in old files. Raises ConfigError, and changes nothing, where other names
    are missing or too many, shapes differ, or values are not finite: in one line with the first few names of each kind.
    """
    own, heads = encoder.state_dict(), set(head_keys(encoder, tensors))
    both = [name for name in own if name in tensors]
    of_other_form = [name for name in both if _form(tensors[name]) != _form(own[name])]
    faults = {
        "missing": [name for name in own if name not in tensors and not name.endswith(".num_batches_tracked")],
        "not of this encoder": [name for name in tensors if name not in own and name not in heads],
        "of another shape": [f"{name} {_form(tensors[name])} for {_form(own[name])}" for name in of_other_form],
        "not finite": [name for name in both if not bool(tensors[name].isfinite().all())],
    }
    told = [f"{kind}: {_first(names)}" for kind, names in faults.items() if names]
    if told:
        raise ConfigError(
            f"encoder.weights={source} do not fit the encoder; {'; '.join(told)}; give the weights of an encoder "
            "with these settings"
        )
    encoder.load_state_dict({**own, **{name: tensors[name] for name in both}})


def _form(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f" {str(tensor.dtype).removeprefix('torch.')}"
    return f"({','.join(map(str, tensor.shape))}){kind}"


def _first(names: Iterable[str]) -> str:
    names = sorted(name[:200] for name in names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
