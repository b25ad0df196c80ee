"""Several sources as one: the images of the first, then those of the second, and so on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from equimod.pipelines.conversion.check import CheckedImage, Encoding
from equimod.pipelines.conversion.source import Item, Reader, Source
from equimod.pipelines.records.folder import Labels
from equimod.pipelines.records.joined import join_classes


@dataclass(frozen=True)
class JoinedReader:
    """Readers of several sources. In front of an item's own place stands the number of its source, before its name
    that source's path."""

    readers: tuple[Reader, ...]
    names: tuple[str, ...]

    def load(self, item: Item, encoding: Encoding) -> CheckedImage:
        """See Reader."""
        return self.readers[item.place[0]].load(self._own(item), encoding)

    def mark(self, item: Item) -> tuple[int, ...]:
        """See Reader."""
        return self.readers[item.place[0]].mark(self._own(item))

    def _own(self, item: Item) -> Item:
        part, *place = item.place
        return replace(item, name=item.name.removeprefix(f"{self.names[part]}/"), place=tuple(place))


def join(sources: Sequence[Source], labels: Labels = "auto") -> Source:
    """One source of several. A class is known by its name; `labels` "none" leaves all out.

    Raises RecordsError where some have labels and others none.
    """
    names = tuple(str(source.path) for source in sources)
    classes, numbers = join_classes(names, [source.classes for source in sources], labels)
    items: list[Item] = []
    for part, (source, number) in enumerate(zip(sources, numbers, strict=True)):
        start = items[-1].index + 1 if items else 0
        items += [
            Item(
                start + item.index,
                f"{names[part]}/{item.name}",
                int(number[item.label]) if len(number) else -1,
                (part, *item.place),
            )
            for item in source.items
        ]
    reader = JoinedReader(tuple(source.reader for source in sources), names)
    return Source(sources[0].path, classes, items, reader, also=tuple(source.path for source in sources[1:]))
