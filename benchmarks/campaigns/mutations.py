"""Contents that nobody wrote: bytes, JSON and text, changed at random places."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from equimod.benchmarks.campaigns.flips import flip

_MOST = 64  # bytes inserted, removed or repeated
_NUMBERS = (0, -1, 1, 2, 255, 256, 65_535, 2**31 - 1, 2**31, -(2**31), 2**40, 2**63 - 1, 2**63, 2**64, 10**400)
_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0.5,
    1e308,
    "",
    "a",
    "\0",
    "\n",
    "../..",
    "é" * 300,
    [],
    {},
    [[]],
    [None],
    {"": {}},
    "0",
)
_TOKENS = (
    *(b"{", b"}", b"[", b"]", b'"', b"'", b":", b",", b"&a ", b"*a", b"<<: *a", b"!!python/object:os.system ", b"%"),
    *(b"\n", b"\r\n", b"\t", b"\0", b"\xff", b"\xc3", b"\x1b[2J", b"# ", b"---\n", b"? ", b"- ", b"null", b"NaN"),
    *(
        b"Infinity",
        b"1e999",
        b"-1",
        b"99999999999999999999",
        b"0x1F",
        b"true",
        b"\xe2\x80\xae",
        b"\\u0000",
        b"[" * 5000,
    ),
)


def changed(content: bytes, rng: np.random.Generator) -> bytes:
    """`content` changed in one to three ways. Where it is JSON, or lines of it, half of the results are so too."""
    changes = int(rng.integers(1, 4))
    if content[:1] in (b"{", b"[") and rng.random() < 0.5:
        with suppress(ValueError):
            return _other_json(content, changes, rng)
        lines = content.split(b"\n")
        place = int(rng.integers(len(lines)))
        with suppress(ValueError):
            lines[place] = _other_json(lines[place], changes, rng)
            return b"\n".join(lines)
    for _ in range(changes):
        content = _WAYS[int(rng.integers(len(_WAYS)))](content, rng)
    return content


def _other_json(content: bytes, changes: int, rng: np.random.Generator) -> bytes:
    value = json.loads(content)
    for _ in range(changes):
        value = _other_value(value, rng)
    return json.dumps(value).encode()


def _other_value(value: Any, rng: np.random.Generator) -> Any:
    """`value` with one that lies in it replaced, removed, or joined by another."""
    inner = (
        list(value.items() if isinstance(value, dict) else enumerate(value)) if isinstance(value, dict | list) else []
    )
    if not inner or rng.random() < 0.2:
        choices = (*_NUMBERS, *_VALUES)
        return choices[int(rng.integers(len(choices)))]
    key, old = inner[int(rng.integers(len(inner)))]
    copy = value.copy()
    way = rng.random()
    if way < 0.1:
        del copy[key]
    elif way < 0.2 and isinstance(copy, list):
        copy.append(old)
    elif way < 0.2:
        copy[f"{key} "] = old
    else:
        copy[key] = _other_value(old, rng)
    return copy


def _place(content: bytes, rng: np.random.Generator) -> tuple[int, int]:
    """Start and end of a part that is not long."""
    start = int(rng.integers(len(content) + 1))
    return start, start + int(rng.integers(1, _MOST))


def _flipped(content: bytes, rng: np.random.Generator) -> bytes:
    return flip(content, int(rng.integers(len(content))), int(rng.integers(8))) if content else content


def _without(content: bytes, rng: np.random.Generator) -> bytes:
    start, end = _place(content, rng)
    return content[:start] + content[end:]


def _inserted(content: bytes, rng: np.random.Generator) -> bytes:
    start, end = _place(content, rng)
    return content[:start] + rng.bytes(end - start) + content[start:]


def _overwritten(content: bytes, rng: np.random.Generator) -> bytes:
    start, end = _place(content, rng)
    return content[:start] + (b"\0" if rng.random() < 0.5 else b"\xff") * (end - start) + content[end:]


def _repeated(content: bytes, rng: np.random.Generator) -> bytes:
    start, end = _place(content, rng)
    return content[:end] + content[start:]


def _token(content: bytes, rng: np.random.Generator) -> bytes:
    start, _ = _place(content, rng)
    return content[:start] + _TOKENS[int(rng.integers(len(_TOKENS)))] + content[start:]


def _cut(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: int(rng.integers(len(content) + 1))]


_WAYS: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (
    *(_flipped, _flipped, _without, _inserted, _overwritten, _repeated, _token, _token, _cut),
)
