"""Programs that both write a text and parse it back to its exact -ln p.

A program tells a text to a teller as fixed text, as choices from weighted tables, and as recalls of what is already
decided (a name, a pronoun, the place of a hidden thing, a sum). The writer draws the choices, the parser reads them
off a text. No option of a table is the beginning of another, so decisions and text are one-to-one, no text is the
beginning of another, and the -ln p of the decisions is the -ln p of the text together with its end.
"""

import itertools
import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol


@dataclass(frozen=True)
class Story:
    text: str
    nll: float  # exact -ln p of the text and its end, nats


@dataclass(frozen=True)
class Choice:
    """One decision of a parsed story: text[start:end]; a call-back is decided, wholly or nearly, by earlier text."""

    start: int
    end: int
    kind: str  # "free" or "callback"
    nll: float  # nats; 0 for a call-back that leaves no choice


class Recall(str):
    """Text that an earlier choice decides."""

    __slots__ = ()


class Table:
    """Prefix-free options with weights; without weights the option of rank r = 0, 1, ... weighs 1 / (r + 2)."""

    def __init__(self, options: Iterable[str], weights: Sequence[float] = (), kind: str = "free") -> None:
        self.options = tuple(Recall(option) for option in options)
        self.kind = kind
        self.weights = tuple(weights) or tuple(1 / (rank + 2) for rank in range(len(self.options)))
        total = math.fsum(self.weights)
        self.nlls = [-math.log(weight / total) for weight in self.weights]
        self.cumulative = [*itertools.accumulate(weight / total for weight in self.weights[:-1]), 1.0]
        ordered = sorted(self.options)  # an option is followed directly by those that it begins
        assert len(self.nlls) == len(self.cumulative) == len(ordered), ordered
        assert all(ordered) and not any(b.startswith(a) for a, b in itertools.pairwise(ordered)), ordered

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(f"({re.escape(option)})" for option in self.options))


class Teller(Protocol):
    def choose(self, table: Table) -> Recall:
        """Decide one option of `table`, add it to the story and return it."""

    def tell(self, *parts: str | Table) -> None:
        """Add parts in order: a Table is chosen from, a Recall is a call-back, a plain string is fixed text."""


Program = Callable[[Teller], None]


class Writer:
    """Draws every choice with `draw`, a source of uniform numbers in [0, 1)."""

    def __init__(self, draw: Callable[[], float]) -> None:
        self.draw = draw
        self.parts: list[str] = []
        self.nll = 0.0

    def choose(self, table: Table) -> Recall:
        index = bisect_right(table.cumulative, self.draw())
        self.nll += table.nlls[index]
        option = table.options[index]
        self.parts.append(option)
        return option

    def tell(self, *parts: str | Table) -> None:
        for part in parts:
            if isinstance(part, Table):
                self.choose(part)
            else:
                self.parts.append(part)


class Parser:
    """Reads every choice off `text`; raises ValueError naming the offset where no option fits."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.offset = 0
        self.nll = 0.0
        self.choices: list[Choice] = []

    def choose(self, table: Table) -> Recall:
        match = table.pattern.match(self.text, self.offset)
        if match is None or match.lastindex is None:
            raise self.misfit("|".join(table.options))
        index = match.lastindex - 1
        self.nll += table.nlls[index]
        self._advance(table.options[index], table.kind, table.nlls[index])
        return table.options[index]

    def tell(self, *parts: str | Table) -> None:
        for part in parts:
            if isinstance(part, Table):
                self.choose(part)
            elif not self.text.startswith(part, self.offset):
                raise self.misfit(part)
            elif isinstance(part, Recall):
                self._advance(part, "callback", 0.0)
            else:
                self.offset += len(part)

    def _advance(self, option: str, kind: str, nll: float) -> None:
        start, self.offset = self.offset, self.offset + len(option)
        self.choices.append(Choice(start, self.offset, kind, nll))

    def misfit(self, expected: str) -> ValueError:
        found = self.text[self.offset : self.offset + 20]
        return ValueError(f"not a story: offset {self.offset} has {found!r} where {expected[:60]!r} should stand")


def write(program: Program, draw: Callable[[], float]) -> Story:
    """Let `program` tell one story, every choice drawn with `draw` (uniform numbers in [0, 1))."""
    writer = Writer(draw)
    program(writer)
    return Story("".join(writer.parts), writer.nll)


def parse(text: str, program: Program) -> tuple[float, list[Choice]]:
    """The exact -ln p of `text` in nats, and its decisions in order.

    Raises ValueError naming the offset where the text is none that the program can write.
    """
    parser = Parser(text)
    program(parser)
    if parser.offset < len(text):
        raise parser.misfit("")
    return parser.nll, parser.choices
