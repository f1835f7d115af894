"""Stories against readers of their own: regular expressions that know English, not the program."""

import itertools
import re
import statistics
import subprocess
import sys
from typing import Any

import pytest

from gptlib.data import stories
from gptlib.data.stories import Story, parse, write_stories
from gptlib.data.telling import Recall, Table
from gptlib.data.tokenizers import Tokenizer, build_tokenizer
from gptlib.fields import DataConfig

WORD_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen"
)
NUMBERS = {word: number for number, word in enumerate(WORD_NUMBERS.split())}
GIRLS = {name.strip() for name in stories.GIRLS.options}
BOYS = {name.strip() for name in stories.BOYS.options}


@pytest.fixture(scope="module")
def written() -> list[Story]:
    return write_stories(7, 2_000)


def test_every_story_parses_back_to_its_probability(written: list[Story]) -> None:
    for story in written:
        nll, choices = parse(story.text)
        assert nll == pytest.approx(story.nll, rel=1e-9)
        assert sum(choice.nll for choice in choices) == pytest.approx(story.nll, rel=1e-9)
        assert all(a.end <= b.start for a, b in itertools.pairwise(choices))


def test_the_same_seed_gives_the_same_bytes_in_any_process(written: list[Story]) -> None:
    program = "from gptlib.data.stories import write_stories; print(*(s.text for s in write_stories(7, 50)), sep='\\n')"
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONHASHSEED": hash_seed}, check=True)
        assert done.stdout.splitlines() == [story.text for story in written[:50]]
    assert write_stories(8, 50) != written[:50]


def test_excluded_texts_are_not_written(written: list[Story]) -> None:
    excluded = {story.text for story in written[:10]}
    again = write_stories(7, 100, exclude=excluded)
    assert not excluded & {story.text for story in again}
    assert again == written[10:110]


def test_every_table_is_prefix_free() -> None:
    tables = [value for value in vars(stories).values() if isinstance(value, Table)]
    assert len(tables) > 30
    for table in tables:
        for a, b in itertools.permutations(table.options, 2):
            assert not b.startswith(a)


class Structure:
    """Tells a story by `path` where a table has few options, and by the first option where it has many."""

    def __init__(self, path: list[int]) -> None:
        self.path, self.text = path, ""
        self.widths: list[int] = []

    def choose(self, table: Table) -> Recall:
        index = 0
        if len(table.options) <= 6:
            depth = len(self.widths)
            index = self.path[depth] if depth < len(self.path) else 0
            self.widths.append(len(table.options))
        self.text += table.options[index]
        return Recall(table.options[index])

    def tell(self, *parts: str | Table) -> None:
        for part in parts:
            if isinstance(part, Table):
                self.choose(part)
            else:
                self.text += part


def test_no_two_ways_through_the_program_give_the_same_text_or_the_beginning_of_another() -> None:
    texts: list[str] = []
    paths: list[list[int]] = [[]]
    while paths and len(texts) < 20_000:
        path = paths.pop()
        teller = Structure(path)
        stories.story(teller)
        texts.append(teller.text)
        taken = path + [0] * (len(teller.widths) - len(path))
        for depth in range(len(path), len(teller.widths)):
            paths += [[*taken[:depth], i] for i in range(1, teller.widths[depth])]
    assert len(texts) > 5_000
    assert not any(b.startswith(a) for a, b in itertools.pairwise(sorted(texts)))
    for text in texts[::50]:
        assert parse(text)[0] > 0


# --- what a story says ------------------------------------------------------------------------------------------


def opening(text: str) -> tuple[str | Any, ...]:
    match = re.match(r"[^,.]*[,.] (\w+) and (her|his) (\w+) (\w+) ", text)
    assert match, text
    return match.groups()


def test_names_pronouns_and_relations_agree(written: list[Story]) -> None:
    for story in written:
        hero, possessive, relation, other = opening(story.text)
        assert hero != other
        assert possessive == ("her" if hero in GIRLS else "his")
        assert relation not in ("sister", "brother") or other in (GIRLS if relation == "sister" else BOYS)
        spoken_of = set(re.findall(r"\b([Ss]he|[Hh]e|[Hh]er|[Hh]is)\b", story.text))
        assert hero in GIRLS or other in GIRLS or not {"she", "her"} & {word.lower() for word in spoken_of}
        assert hero in BOYS or other in BOYS or not {"he", "his"} & {word.lower() for word in spoken_of}
        names = set(re.findall(r"\b[A-Z]\w+", story.text)) & (GIRLS | BOYS)
        assert names == {hero, other}


def test_every_determined_call_back_repeats_a_choice_or_follows_from_a_name_or_a_count(written: list[Story]) -> None:
    for story in written:
        _, choices = parse(story.text)
        said: set[str] = set()
        for choice in choices:
            option = story.text[choice.start : choice.end]
            if choice.kind == "free":
                said.add(option)
            elif choice.nll == 0 and option.strip() not in {"she", "he", "her", "his", *NUMBERS}:
                assert option in said


def matches(written: list[Story], pattern: str) -> list[tuple[str, re.Match[str]]]:
    found = [(story.text, match) for story in written if (match := re.search(pattern, story.text))]
    assert len(found) > 100
    return found


def test_hidden_things_are_looked_for_where_they_were_put_and_found_where_they_were_moved(written: list[Story]) -> None:
    pattern = (
        r"had a (\S+) ([^.]+)\. \w+ put it (.+?) and (?:went|ran|left).* (?:hid|put|left|placed|dropped|buried)"
        r" it ([^.]+)\. \w+ looked ([^.]+)\. \"Where is my (\S+) ([^?]+)\?\" .*\"It is (.+?),\" said"
    )
    for _, match in matches(written, pattern):
        color, thing, spot, new_spot, looked, asked_color, asked_thing, found = match.groups()
        assert (color, thing, spot, new_spot) == (asked_color, asked_thing, looked, found)
        assert spot != new_spot


def test_counts_add_up(written: list[Story]) -> None:
    for text, match in matches(written, r"counted (\w+) (\w+ \w+).*How many (\w+ \w+) are.*There are (\w+),"):
        changes = [NUMBERS[n] for n in re.findall(r"Soon came (\w+) more", text)]
        changes += [-NUMBERS[n] for n in re.findall(r"But (\w+) were lost", text)]
        assert NUMBERS[match[4]] == NUMBERS[match[1]] + sum(changes)
        assert match[2] == match[3]


def test_of_three_foods_two_come_back_and_the_third_is_needed(written: list[Story]) -> None:
    pattern = (
        r"needed (\w+), (\w+) and (\w+) from the (\w+), so .*At the (\w+) \w+ forgot the (\w+) and came back with (\w+)"
        r" and (\w+)\. \"I need (\w+) too"
    )
    for _, match in matches(written, pattern):
        *foods, stop, there, forgotten, first, second, needed = match.groups()
        assert len(set(foods)) == 3 and stop == there and forgotten == needed
        assert [first, second] == [food for food in foods if food != forgotten]


def test_things_are_where_swapping_leaves_them(written: list[Story]) -> None:
    pattern = (
        r"carried a (.+?) and \w+ had a (.+?)(?:\. A|\. The| and felt).*showed h\w+ \w+ the (.+?) and \w+ had the (.+?)"
        r"\."
    )
    for text, match in matches(written, pattern):
        swapped = "They swapped." in text
        assert (match[3], match[4]) == ((match[2], match[1]) if swapped else (match[1], match[2]))


def test_the_secret_word_is_recalled(written: list[Story]) -> None:
    for _, match in matches(written, r"The word is (\w+)\..*\"(?:Is it (\w+)\?\" \"No!\" \")?It is (\w+),"):
        assert match[1] == match[3] != match[2]


def test_the_order_and_the_place_of_a_walk_are_recalled(written: list[Story]) -> None:
    pattern = (
        r"walked to the (\w+), the (\w+) and the (\w+).*At the (\w+) \w+ lost a ([^.]+)\. \"Where did you go (\w+)\?\" "
        r".*\"To the (\w+)\.\" They found the (.+) at the (\w+)\."
    )
    for _, match in matches(written, pattern):
        first, second, third, lost_at, thing, order, answer, found, found_at = match.groups()
        assert answer == {"first": first, "last": third}[order]
        assert lost_at in (first, second, third) and (thing, lost_at) == (found, found_at)


def test_a_text_that_contradicts_itself_is_refused_at_the_contradiction(written: list[Story]) -> None:
    text = next(story.text for story in written if "The word is lantern" in story.text)
    offset = text.rindex(" lantern")
    with pytest.raises(ValueError, match=f"offset {offset} "):
        parse(text[:offset] + text[offset:].replace("lantern", "candle"))
    with pytest.raises(ValueError, match="offset"):
        parse(text + " And so on.")


# --- size and distance ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(written: list[Story]) -> Tokenizer:
    return build_tokenizer(DataConfig(vocab_size=512), [story.text for story in written])


def test_stories_fit_short_contexts(written: list[Story], tokenizer: Tokenizer) -> None:
    words = [len(story.text.split()) for story in written]
    tokens = [len(ids) for ids in tokenizer.encode_batch([story.text for story in written])]
    assert 40 < statistics.mean(words) < 70
    assert 90 < statistics.mean(tokens) < 110 and max(tokens) < 200
    vocabulary = {word.strip('.,!?"') for story in written for word in story.text.split()}
    assert 300 < len(vocabulary) < 1_000


def test_many_call_backs_reach_over_more_than_64_tokens(written: list[Story], tokenizer: Tokenizer) -> None:
    """Counted from the nearest earlier place that has the same text."""
    far = 0
    for story in written[:300]:
        for choice in parse(story.text)[1]:
            option = story.text[choice.start : choice.end]
            before = story.text.rfind(option, 0, choice.start)
            if choice.kind == "callback" and choice.nll == 0 and before >= 0:
                far += len(tokenizer.encode(story.text[before + len(option) : choice.start])) > 64
    assert far > 300
