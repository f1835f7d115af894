"""A small grammar with everything that the machinery offers, enumerated completely."""

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from scipy.stats import chisquare

from gptlib.data.telling import Language, Program, Recall, Table, Tale, Teller, parse, write

NAMES = Table((" Ann", " Bo"), (3, 1))
THINGS = Table((" hat", " cup", " bell"))
JOINT = Table((".", " and"), (1, 2))
SPEAKER = Table((" Ann", " Bo", " nobody"), (1, 1, 8), "callback")


def tale(t: Teller) -> None:
    """Names, repeated and optional parts, an excluded option, call-backs."""
    name = NAMES.options[t.choose(NAMES)]
    t.tell(" has a")
    thing = t.choose(THINGS)
    for _ in range(3):
        if t.choose(JOINT) == 0:
            break
        t.tell(" a")
        thing = t.choose(THINGS, [thing])
    t.tell(" Where is the")
    t.tell(THINGS.options[thing])
    t.tell("?")
    t.choose(SPEAKER)
    t.tell(" said, here,")
    t.tell(name)
    t.tell("!")


class Enumerator:
    """Follows `path` (an option number per choice), then takes first options; the probability is of its own making."""

    def __init__(self, path: list[int]) -> None:
        self.path, self.text, self.probability = path, "", 1.0
        self.widths: list[int] = []

    def choose(self, table: Table, excluded: Sequence[int] = ()) -> int:
        left = [index for index in range(len(table.options)) if index not in excluded]
        depth = len(self.widths)
        index = left[self.path[depth] if depth < len(self.path) else 0]
        self.widths.append(len(left))
        self.text += table.options[index]
        self.probability *= table.weights[index] / sum(table.weights[other] for other in left)
        return index

    def tell(self, part: str) -> None:
        self.text += part


def enumerate_all(program: Program) -> dict[str, float]:
    """{text: probability} of everything that `program` can tell."""
    texts: dict[str, float] = {}
    paths: list[list[int]] = [[]]
    while paths:
        path = paths.pop()
        teller = Enumerator(path)
        program(teller)
        taken = path + [0] * (len(teller.widths) - len(path))
        for depth in range(len(path), len(teller.widths)):
            paths += [[*taken[:depth], i] for i in range(1, teller.widths[depth])]
        assert teller.text not in texts
        texts[teller.text] = teller.probability
    return texts


@pytest.fixture(scope="module")
def everything() -> dict[str, float]:
    return enumerate_all(tale)


def test_the_probabilities_of_all_texts_sum_to_one(everything: dict[str, float]) -> None:
    assert len(everything) > 100
    assert math.fsum(everything.values()) == pytest.approx(1.0, rel=1e-12)


def test_no_text_begins_another(everything: dict[str, float]) -> None:
    ordered = sorted(everything)
    assert not any(b.startswith(a) for a, b in itertools.pairwise(ordered))


def test_the_parser_finds_the_probability_of_every_text(everything: dict[str, float]) -> None:
    for text, probability in everything.items():
        nll, choices = parse(text, tale)
        assert nll == pytest.approx(-math.log(probability), rel=1e-12)
        assert nll == pytest.approx(math.fsum(choice.nll for choice in choices), rel=1e-12)


def test_the_writer_draws_with_these_probabilities(everything: dict[str, float]) -> None:
    draw = random.Random(3).random
    count = 20_000
    seen = Counter(write(tale, draw).text for _ in range(count))
    assert set(seen) <= set(everything)
    common = [text for text, p in everything.items() if p * count > 10]
    rare = count - sum(seen[text] for text in common)
    expected = [everything[text] * count for text in common]
    assert chisquare([*(seen[text] for text in common), rare], [*expected, count - sum(expected)]).pvalue > 1e-3


def test_spans_and_kinds() -> None:
    text = " Ann has a hat. Where is the hat? nobody said, here, Ann!"
    nll, choices = parse(text, tale)
    assert [(text[c.start : c.end], c.kind) for c in choices] == [
        (" Ann", "free"), (" hat", "free"), (".", "free"), (" hat", "callback"), (" nobody", "callback"),
        (" Ann", "callback"),
    ]  # fmt: skip
    assert [c.nll == 0 for c in choices] == [False, False, False, True, False, True]
    weight = 1 / 2 / (1 / 2 + 1 / 3 + 1 / 4)  # of rank 0 among three by default
    assert nll == pytest.approx(-math.log(3 / 4 * weight * 1 / 3 * 8 / 10), rel=1e-12)


@pytest.mark.parametrize(
    ("text", "offset"),
    [
        (" Cid has a hat. Where is the hat? Bo said, here, Cid!", 0),
        (" Ann has a hat. Where is the cup? Bo said, here, Ann!", 28),
        (" Ann has a hat and a hat. Where is the hat? Bo said, here, Ann!", 20),
        (" Ann has a hat. Where is the hat? Bo said, here, Bo!", 48),
        (" Ann has a hat", 14),
        (" Ann has a hat. Where is the hat? Bo said, here, Ann! The end", 53),
        ("", 0),
    ],
)
def test_a_text_that_the_program_cannot_write_is_refused_at_its_offset(text: str, offset: int) -> None:
    with pytest.raises(ValueError, match=f"offset {offset} "):
        parse(text, tale)


@pytest.mark.parametrize("options", [(" a", " ab"), (" b", " a", " b"), ("", " a")])
def test_a_table_that_is_not_prefix_free_is_a_mistake(options: tuple[str, ...]) -> None:
    with pytest.raises(AssertionError):
        Table(options)


# --- templates --------------------------------------------------------------------------------------------------

LISTS = {"THING": ("a ball", "an oar"), "FOOD": ("tea", "soup"), "NAME": ("Ann", "Bo")}


def told(*templates: str, draws: Sequence[float] = (), **known: str) -> str:
    numbers = iter(draws)

    def program(teller: Teller) -> None:
        tale = Tale(teller, Language(LISTS), {name: Recall(f" {word}") for name, word in known.items()})
        for template in templates:
            tale.say(template)

    return write(program, lambda: next(numbers)).text


def test_articles_are_told_and_not_recalled() -> None:
    assert told("{a THING}, {x:a THING}, the {x}!", draws=(0, 0.9)) == " a ball, an oar, the oar!"
    assert told("the {x:THING} and {y:a THING-x}", draws=(0.9, 0.9, 0)) == " the oar and a ball"


def test_choices_hold_slots_and_choices_and_own_the_space_before_them() -> None:
    template = "{x}[.| drank [tea|some {FOOD}]!]"
    assert told(template, draws=(0,), x="Ann") == " Ann."
    assert told(template, draws=(0.9, 0), x="Ann") == " Ann drank tea!"
    assert told(template, draws=(0.9, 0.9, 0.9), x="Ann") == " Ann drank some soup!"


def test_one_of_several_is_recalled_alike_often() -> None:
    assert told("{z:x/y} and {z}", draws=(0.51,), x="Ann", y="Bo") == " Bo and Bo"


def test_punctuation_follows_without_a_space() -> None:
    assert told("{x}", ". {x} ran", x="Ann") == " Ann. Ann ran"


@pytest.mark.parametrize("template", ["[a|ab]", "[{x}|a]", "no{x}", "{x:NONE}", "[a|b", "a]", "[[a|b]|c]"])
def test_a_template_that_could_be_read_in_two_ways_or_not_at_all_is_a_mistake(template: str) -> None:
    with pytest.raises((AssertionError, IndexError)):
        told(template, draws=(0, 0), x="Ann")
