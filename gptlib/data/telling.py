"""Programs that both write a text and parse it back to its exact -ln p.

A program tells a text to a teller as fixed text, as choices from weighted tables, and as recalls of what is already
decided (a name, a pronoun, the place of a hidden thing, a sum). The writer draws the choices, the parser reads them
off a text. No option of a table is the beginning of another, so decisions and text are one-to-one, no text is the
beginning of another, and the -ln p of the decisions is the -ln p of the text together with its end.

Sentences are templates, compiled by a Language and told by a Tale:

    {COLOR}       a word of the list COLOR             {a COLOR}      the same with its article: a red, an old
    {x:COLOR}     kept as x, without the article       {x:COLOR-y-z}  none of what y and z are
    {x}           recalled                             {x:p/q/r}      one of what p, q and r are
    [one|other]   a choice of words, each beginning with its own fixed text; it may hold slots and choices

A space before a slot or a choice belongs to what fills it: an option contains its leading space.
"""

import itertools
import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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
        self.recalls = tuple(Recall(re.sub("^ an? ", " ", option)) for option in self.options)  # without the article
        self.kind = kind
        self.weights = tuple(weights) or tuple(1 / (rank + 2) for rank in range(len(self.options)))
        total = math.fsum(self.weights)
        self.chances = [weight / total for weight in self.weights]
        self.cumulative = [*itertools.accumulate(self.chances[:-1]), 1.0]
        self.nlls = [-math.log(chance) for chance in self.chances]
        self.index = {recall: index for index, recall in enumerate(self.recalls)}
        self.longest = max(map(len, self.options))
        self.ordered = sorted(zip(self.options, range(len(self.options)), strict=True))
        assert len(self.nlls) == len(self.cumulative) == len(self.index) == len(self.ordered), self.options
        pairs = itertools.pairwise(option for option, _ in self.ordered)  # what an option begins follows it directly
        clashes = [(a, b) for a, b in pairs if b.startswith(a)]
        assert all(self.options) and not clashes, clashes

    def nll(self, index: int, excluded: Sequence[int]) -> float:
        """-ln p of an option, given that it is none of the excluded ones; nats."""
        if not excluded:
            return self.nlls[index]
        return self.nlls[index] + math.log1p(-math.fsum(self.chances[other] for other in excluded))

    def find(self, text: str, offset: int) -> int | None:
        """The option that stands at `offset`: if there is one, no other sorts between it and the text."""
        place = bisect_right(self.ordered, text[offset : offset + self.longest], key=lambda pair: pair[0]) - 1
        option, index = self.ordered[place]
        return index if place >= 0 and text.startswith(option, offset) else None


class Teller(Protocol):
    def choose(self, table: Table, excluded: Sequence[int] = ()) -> int:
        """Decide one option of `table`, none of the `excluded` numbers, add it to the story and return its number."""

    def tell(self, part: str) -> None:
        """Add a call-back (a Recall) or fixed text (a plain string)."""


Program = Callable[[Teller], None]


class Writer:
    """Draws every choice with `draw`, a source of uniform numbers in [0, 1)."""

    def __init__(self, draw: Callable[[], float]) -> None:
        self.draw = draw
        self.parts: list[str] = []
        self.nll = 0.0

    def choose(self, table: Table, excluded: Sequence[int] = ()) -> int:
        index = bisect_right(table.cumulative, self.draw())
        while index in excluded:
            index = bisect_right(table.cumulative, self.draw())
        self.nll += table.nll(index, excluded)
        self.parts.append(table.options[index])
        return index

    def tell(self, part: str) -> None:
        self.parts.append(part)


class Parser:
    """Reads every choice off `text`; raises ValueError naming the offset where no option fits."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.offset = 0
        self.nll = 0.0
        self.choices: list[Choice] = []

    def choose(self, table: Table, excluded: Sequence[int] = ()) -> int:
        index = table.find(self.text, self.offset)
        if index is None or index in excluded:
            raise self.misfit("|".join(table.options))
        nll = table.nll(index, excluded)
        self.nll += nll
        self._advance(table.options[index], table.kind, nll)
        return index

    def tell(self, part: str) -> None:
        if not self.text.startswith(part, self.offset):
            raise self.misfit(part)
        if isinstance(part, Recall):
            self._advance(part, "callback", 0.0)
        else:
            self.offset += len(part)

    def _advance(self, option: str, kind: str, nll: float) -> None:
        start, self.offset = self.offset, self.offset + len(option)
        self.choices.append(Choice(start, self.offset, kind, nll))

    def misfit(self, expected: str) -> ValueError:
        found = self.text[self.offset : self.offset + 20]
        return ValueError(f"not a story: offset {self.offset} has {found!r} where {expected[:60]!r} should stand")


# --- templates --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slot:
    """A recall of `name`; with a table or `among`, a choice that is kept as `name` (not at all where it is empty)."""

    name: str
    table: Table | None = None
    excluded: tuple[str, ...] = ()  # names of what is not chosen again
    among: tuple[str, ...] = ()  # names of what is chosen from


@dataclass(frozen=True)
class Fork:
    table: Table  # of the fixed text that begins each branch
    branches: tuple["Script", ...]  # what follows it


Script = tuple[str | Slot | Fork, ...]


class Language:
    """Tables by name, and the templates that are told with them. A list "a ball, an oar" gives NAME and `a NAME`."""

    def __init__(self, lists: Mapping[str, Sequence[str]]) -> None:
        self.tables: dict[str, Table] = {}
        self.scripts: dict[str, Script] = {}
        for name, options in lists.items():
            ranks = range(2, len(options) + 2)
            weights = [1 / (rank * math.sqrt(rank)) for rank in ranks]  # rounded alike everywhere, as a power is not
            table = Table([f" {option}" for option in options], weights)
            self.tables[name] = Table(table.recalls, weights)
            if table.recalls != table.options:
                self.tables[f"a {name}"] = table

    def script(self, template: str) -> Script:
        if template not in self.scripts:
            tokens = re.findall(r" ?\{[^{}]*\}| ?\[|[\]|]|(?: (?![{\[])|[^][{}| ])+", template)
            assert "".join(tokens) == template, template
            self.scripts[template] = self._compile(tokens)
            assert not tokens, template
        return self.scripts[template]

    def _compile(self, tokens: list[str]) -> Script:
        """Compile tokens up to the end of this template or branch, and take them off the list."""
        parts: list[str | Slot | Fork] = []
        while tokens and tokens[0] not in ("|", "]"):
            token = tokens.pop(0)
            if token.endswith("["):
                parts.append(self.fork(token[:-1], self._branches(tokens)))
            elif token.endswith("}"):
                assert token.startswith(" "), f"no space before {token}"
                parts.append(self._slot(token[2:-1]))
            else:
                parts.append(token)
        return tuple(parts)

    def _branches(self, tokens: list[str]) -> list[Script]:
        branches = [self._compile(tokens)]
        while tokens.pop(0) == "|":
            branches.append(self._compile(tokens))
        return branches

    def fork(self, space: str, branches: list[Script]) -> Fork:
        heads = [space + head for head, *_ in branches if isinstance(head, str)]
        assert len(heads) == len(branches), f"a choice that does not begin with fixed text: {branches}"
        return Fork(Table(heads), tuple(branch[1:] for branch in branches))

    def _slot(self, text: str) -> Slot:
        name, _, source = text.rpartition(":")
        if "/" in source:
            return Slot(name, among=tuple(source.split("/")))
        table, *excluded = source.split("-")
        if table in self.tables:
            return Slot(name, self.tables[table], tuple(excluded))
        assert not name, f"no list {table}"
        return Slot(source)


class Tale:
    """What one story, or one thread of it, has decided so far, by name; a table is chosen from anew at each recall."""

    def __init__(self, teller: Teller, language: Language, known: Mapping[str, Recall | Table] | None = None) -> None:
        self.teller, self.language = teller, language
        self.known: dict[str, Recall | Table] = dict(known or {})

    def say(self, template: str) -> None:
        self._run(self.language.script(template if template[0] in ".,?!" else f" {template}"))

    def either(self, *templates: str) -> int:
        """Tell one of several templates, each beginning with its own fixed text; returns its number."""
        return self._choose(f" [{'|'.join(templates)}]")

    def begin(self, *templates: str) -> int:
        """The same at the beginning of a text, without a space."""
        return self._choose(f"[{'|'.join(templates)}]")

    def _choose(self, template: str) -> int:
        (fork,) = self.language.script(template)
        assert isinstance(fork, Fork)
        return self._branch(fork)

    def _run(self, script: Script) -> None:
        for part in script:
            if type(part) is str:
                self.teller.tell(part)
            elif isinstance(part, Fork):
                self._branch(part)
            elif isinstance(part, Slot):
                self._fill(part)

    def _branch(self, fork: Fork) -> int:
        index = self.teller.choose(fork.table)
        self._run(fork.branches[index])
        return index

    def _fill(self, slot: Slot) -> None:
        table = slot.table
        if slot.among:
            table = Table([self._recall(name) for name in slot.among], [1] * len(slot.among), "callback")
        if table is not None:
            excluded = [table.index[self._recall(name)] for name in slot.excluded if self.known[name] in table.index]
            index = self.teller.choose(table, excluded)
            self.known[slot.name] = table.recalls[index]
        elif isinstance(known := self.known[slot.name], Table):
            self.teller.choose(known)
        else:
            self.teller.tell(known)

    def _recall(self, name: str) -> Recall:
        known = self.known[name]
        assert isinstance(known, Recall), name
        return known


# --- writing and parsing ----------------------------------------------------------------------------------------


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
