"""Stories against readers of their own: regular expressions that know English, not the program."""

import hashlib
import itertools
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from gptlib.data import stories
from gptlib.data.stories import Story, parse, write_stories
from gptlib.data.telling import Fork, Language, Recall, Script, Table, Tale, Teller
from gptlib.data.tokenizers import Tokenizer, build_tokenizer
from gptlib.data.words import LISTS
from gptlib.fields import DataConfig

NUMBERS = {word.strip(): number for number, word in enumerate(LISTS["NUMBER"].split(","))}
GIRLS, BOYS = ({name.strip() for name in LISTS[kind].split(",")} for kind in ("GIRL", "BOY"))
PRONOUNS = {"she", "he", "her", "his", "him"}
LANGUAGE: Language = stories.story.args[0]


@pytest.fixture(scope="module")
def written() -> list[Story]:
    return write_stories(7, 10_000)


def is_long(story: Story) -> bool:
    return story.text.startswith(("Once upon a time", "Long ago"))


# --- probability ------------------------------------------------------------------------------------------------


def test_every_story_parses_back_to_its_probability(written: list[Story]) -> None:
    for story in written:
        nll, choices = parse(story.text)
        assert nll == pytest.approx(story.nll, rel=1e-9)
        assert sum(choice.nll for choice in choices) == pytest.approx(story.nll, rel=1e-9)
        assert all(a.end <= b.start for a, b in itertools.pairwise(choices))


def test_the_same_seed_gives_the_same_bytes_in_any_process_and_for_good(written: list[Story]) -> None:
    program = "from gptlib.data.stories import write_stories; print(*(s.text for s in write_stories(7, 50)), sep='\\n')"
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONHASHSEED": hash_seed}, check=True)
        assert done.stdout.splitlines() == [story.text for story in written[:50]]
    assert write_stories(8, 50) != written[:50]
    text = "\n".join(story.text for story in written)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "cbdc84b4df6759af"  # changes with words and program only


def test_excluded_texts_are_not_written(written: list[Story]) -> None:
    excluded = {story.text for story in written[:10]}
    again = write_stories(7, 100, exclude=excluded)
    assert not excluded & {story.text for story in again}
    assert again == written[10:110]


def test_every_table_is_prefix_free_and_an_option_holds_its_space(written: list[Story]) -> None:
    def tables(script: Script) -> list[Table]:
        forks = [part for part in script if isinstance(part, Fork)]
        inner = [table for fork in forks for branch in fork.branches for table in tables(branch)]
        return inner + [fork.table for fork in forks]

    of_words = [*LANGUAGE.tables.values(), stories.PLOT]
    of_templates = [table for script in LANGUAGE.scripts.values() for table in tables(script)]
    assert len(of_words) > 30 and len(of_templates) > 60
    for table in of_words + of_templates:
        assert not any(b.startswith(a) for a, b in itertools.permutations(table.options, 2))
        assert not any(option.endswith(" ") for option in table.options)
    assert all(option.startswith(" ") for table in of_words for option in table.options)


class Enumerator:
    """Follows `path` (an option number per choice), then takes first options; the probability is of its own making."""

    def __init__(self, path: Sequence[int]) -> None:
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


def enumerate_all(program: Any) -> dict[str, float]:
    """{text: probability} of everything that `program` can tell; no text comes twice."""
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


def assert_proper(texts: dict[str, float]) -> None:
    assert math.fsum(texts.values()) == pytest.approx(1.0, rel=1e-9)
    assert not any(b.startswith(a) for a, b in itertools.pairwise(sorted(texts)))


def reduced() -> dict[str, tuple[str, ...]]:
    """Lists of one word, and of a few where a story names several that differ."""
    several = dict.fromkeys(("SPOT", "SECRET", "ANIMAL", "FEW", "NAME", "GIRL", "BOY"), 2)
    several |= dict.fromkeys(("THING", "COLOR", "FOOD", "STOP"), 3)
    lists = stories._lists(LISTS)
    return {name: words[: several.get(name, 1)] for name, words in lists.items()}


@pytest.mark.parametrize("plot", stories.PLOTS.values(), ids=lambda plot: plot.__name__)
def test_the_probabilities_of_all_that_a_thread_can_tell_sum_to_one(plot: Any) -> None:
    language = Language(reduced())

    def program(teller: Teller) -> None:
        tale = Tale(teller, language)
        stories._cast(tale, "X", Recall(" Anna"))
        stories._cast(tale, "Y", Recall(" Tom"))
        assert len(list(plot(tale))) == 3

    texts = enumerate_all(program)
    assert len(texts) >= 64
    assert_proper(texts)


class Narrow(Language):
    """Of a choice of words only two are left."""

    def fork(self, space: str, branches: list[Script]) -> Fork:
        return super().fork(space, branches[:2])


def test_the_probabilities_of_whole_stories_sum_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With three little plots, of which a long story tells two or three and a short one a single one."""

    def run(tale: Tale) -> stories.Thread:
        tale.say("{a THING}.")
        yield
        tale.say("{X.Her} turn.")
        yield
        yield "shared", "Y"

    def rest(tale: Tale) -> stories.Thread:
        tale.say("nothing.")
        yield
        yield
        tale.say("The end of {Y}.")
        yield None

    plots = {" took": run, " did": rest, " said": rest}
    monkeypatch.setattr(stories, "PLOT", Table(plots))
    monkeypatch.setattr(stories, "THREADS", tuple(plots.values()))
    monkeypatch.setattr(stories, "PAUSES", ("A pause.",))
    monkeypatch.setattr(stories, "ASIDES", ("An aside.",))
    language = Narrow(reduced() | {"THING": ("a cup",)})
    texts = enumerate_all(lambda teller: stories.tell_story(language, teller))
    assert 1_000 < len(texts) < 50_000
    assert_proper(texts)


# --- what a story says ------------------------------------------------------------------------------------------


def people(text: str) -> tuple[str, str, str, str]:
    """Hero, possessive, relation, other."""
    relation = "(friend|sister|brother|cousin|neighbor)"
    match = re.search(rf"(\w+) and (her|his) {relation} (\w+) (?:were|sat|played|work)", text)
    assert match, text
    return match[1], match[2], match[3], match[4]


def test_names_pronouns_and_relations_agree(written: list[Story]) -> None:
    for story in written:
        hero, possessive, relation, other = people(story.text)
        assert hero != other
        assert possessive == ("her" if hero in GIRLS else "his")
        assert relation not in ("sister", "brother") or other in (GIRLS if relation == "sister" else BOYS)
        spoken_of = {word.lower() for word in re.findall(r"\w+", story.text)}
        assert hero in GIRLS or other in GIRLS or not {"she", "her"} & spoken_of
        assert hero in BOYS or other in BOYS or not {"he", "his", "him"} & spoken_of
        for kind, name, pronoun in re.findall(r"(girl|boy) named (\w+)\. (She|He) ", story.text):
            assert (name in GIRLS, pronoun) == ((True, "She") if kind == "girl" else (False, "He"))


def test_articles_spaces_and_sentences_are_english(written: list[Story]) -> None:
    for story in written:
        text = re.sub("hour|honest", "o", re.sub("uni|uku|euc", "y", story.text))
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", text), story.text
        assert not re.search(r"  | [.,?!]|[.,][.,]|[.] [a-z]|\" ?\"[a-z]", story.text), story.text
        assert story.text.count('"') % 2 == 0 and story.text[0].isupper() and story.text[-1] in '.!"'


def test_every_determined_call_back_repeats_a_choice_or_follows_from_a_name_or_a_count(written: list[Story]) -> None:
    for story in written[:2_000]:
        _, choices = parse(story.text)
        said: set[str] = set()
        for choice in choices:
            option = re.sub("^ an? ", " ", story.text[choice.start : choice.end])
            if choice.nll == 0 and option.strip().lower() not in {*PRONOUNS, *NUMBERS}:
                assert option in said, (option, story.text)
            said.add(option)


def matches(written: list[Story], pattern: str) -> list[tuple[str, re.Match[str]]]:
    found = [(story.text, match) for story in written if (match := re.search(pattern, story.text))]
    assert len(found) > 200, len(found)
    return found


def test_hidden_things_are_looked_for_where_they_were_put_and_found_where_they_were_moved(written: list[Story]) -> None:
    pattern = (
        r"had an? ([^.]+)\. \w+ (?:put|hid|left|kept) it ([^.]+?) and .* (?:moved|put|dropped|hid|placed) the"
        r" (.+?) ((?:under|in|behind"
        r"|on|beside|inside|near|between|beneath|among) [^.]+)\. .*(?:At last|In the end|Before supper|After a"
        r" while) \w+ looked (.+?)"
        r", but (?:the|it|only).*\"Where is my (.+?)\?\" .*(?:\"I put it (.+?),\" said|\"I do not know,\" said"
        r" \w+, but \w+ found the (.+?)\.)"
    )
    for _, match in matches(written, pattern):
        what, spot, thing, new_spot, looked, asked, told, found = match.groups()
        assert (what, spot) == (asked, looked) and what.endswith(f" {thing}") and spot != new_spot
        assert new_spot == (told or found.removeprefix(f"{thing} "))


def test_counts_add_up(written: list[Story]) -> None:
    pattern = (
        r"counted (\S+) (\S+ [^.]+?) (?:on|in|by|behind) .*How many (.+?) (?:are there|do you have|are left) now.*"
        r"\"(?:There are|I have|Exactly) (\S+),\""
    )
    for text, match in matches(written, pattern):
        more = re.findall(r"(?:Soon \w+ brought|Later \w+ found) (\w+) more", text)
        less = re.findall(
            r"(?:Then \w+ gave (\w+) of the|But (\w+) of the|let \w+ have (\w+)\.|By evening (\w+) were broken)", text
        )
        change = sum(NUMBERS[word] for word in more) - sum(NUMBERS["".join(words)] for words in less)
        assert NUMBERS[match[4]] == NUMBERS[match[1]] + change
        assert match[2] == match[3]


def test_of_three_foods_two_come_back_and_the_third_is_asked_for(written: list[Story]) -> None:
    pattern = (
        r"needed (\w+), (\w+) and (\w+) for an? (.+?), so (\w+) (?:went|ran|walked|hurried) to the (.+?)\. .*At"
        r" the (.+?) \5 (?:met|"
        r"talked|helped).*? forgot the (\w+)\. .*\5 came (?:back|home) with (\w+) and (\w+)\. \"And the"
        r" (\w+)\?\".* the (.+?)\."
    )
    for _, match in matches(written, pattern):
        *foods, _, _, stop, there, forgotten, first, second, asked, _ = match.groups()
        assert len(set(foods)) == 3 and stop == there and forgotten == asked
        assert [first, second] == [food for food in foods if food != forgotten]


def test_things_are_where_trading_leaves_them(written: list[Story]) -> None:
    pattern = (
        r"(\w+) carried an? (.+?), and (\w+) (?:had|carried|held|brought) an? (.+?)\. .*\"Shall we"
        r" (?:trade|swap)\?\" \w.*?"
        r"\"(Yes|No|All right),\" said.* showed (?:her|his) \w+ the (.+?), and \3 (?:kept|still had|cleaned)"
        r" the (.+?)\."
    )
    for _, match in matches(written, pattern):
        kept = match[2], match[4]
        assert (match[6], match[7]) == (kept[::-1] if match[5] == "Yes" else kept)


def test_a_chain_of_trades_is_recalled(written: list[Story]) -> None:
    pattern = (
        r"traded an? (.+?) for an? (.+?) (?:at the market|in town|with a sailor)\. .*Then the (.+?) gave \w+"
        r" an? (.+?) for the"
        r" (.+?)\. .*\"What (do you have now|did you have first|did the .+? take)\?\" .*?\"The (.+?),\" said"
    )
    for _, match in matches(written, pattern):
        first, second, who, third, given, question, answer = match.groups()
        answers = {"do you have now": third, "did you have first": first, f"did the {who} take": second}
        assert answer == answers[question] and second.endswith(f" {given}")


def test_the_secret_word_is_recalled(written: list[Story]) -> None:
    pattern = r"secret word is (\w+)[.,].* word\?\" (?:\"Is it (\w+)\?\" said \w+\. \"No, it is|\"It is) (\w+),"
    for text, match in matches(written, pattern):
        assert match[1] == match[3] != match[2]
        assert set(re.findall(r"The word is (\w+),", text)) <= {match[1]}


def test_the_order_and_the_place_of_a_walk_are_recalled(written: list[Story]) -> None:
    pattern = (
        r"walked to the ([^.]+?), then to the ([^.]+?) and (?:at last|finally|from there) to the ([^.]+?)\. "
        r".*At the ([^.]+?) \w+ (?:lost|dropped|forgot) an? ([^.]+)\. "
        r".*\"Where (did you go first|were you last|did you go after the (.+?))\?\" .*?\"(?:To|At) the (.+?),\""
        r" .* (?:They found|picked up|they saw) the ([^.]+?) at the (.+?)\."
    )
    for _, match in matches(written, pattern):
        first, second, third, lost_at, thing, question, after, answer, found, found_at = match.groups()
        assert answer == (second if after else {"did you go first": first, "were you last": third}[question])
        assert after in (None, first) and lost_at in (first, second, third) and (thing, lost_at) == (found, found_at)


def test_letters_likes_pets_and_promises_are_recalled(written: list[Story]) -> None:
    letter = (
        r"a letter from \w+ (\w+): \"[\w ]+ to the (.+?) at (\w+) o'clock and bring an? (.+?)\.\" .*At (\w+)"
        r" o'clock \w+ \w+"
        r" at the (.+?) with the (.+?)\. (?:Soon|There was) \w+ (\w+)"
    )
    for _, match in matches(written, letter):
        assert match.groups()[:4] == (match[8], match[6], match[5], match[7])
    likes = (
        r"\"I like (\w+),\" said (\w+)\. \"I like (\w+),\" said the (.+?)\. .*(?:gave the (\w+) to (.+?) and"
        r" the (\w+) to (.+?)"
        r"\.|the (.+?) got the (\w+) and (\w+) got the (\w+)\.)"
    )
    for text, match in matches(written, likes):
        likes_of = {match[2]: match[1], match[4]: match[3]}
        gifts = {match[6]: match[5], match[8]: match[7]} if match[5] else {match[9]: match[10], match[11]: match[12]}
        gifts = {who.removeprefix("the "): food for who, food in gifts.items()}
        assert (gifts == likes_of) == ("By mistake" not in text) and set(gifts) == set(likes_of)
    pet = (
        r"met an? (\w+) named (\w+) .* the (\w+) (?:ran|got|slipped) .*?and hid (.+?)\. .*\"Where are you,"
        r" (\w+)\?\".*? looked (.+?), and"
    )
    for _, match in matches(written, pet):
        assert (match[1], match[2], match[4]) == (match[3], match[5], match[6])
    promise = (
        r"promised \w+ to (.+?) (?:before dark|by noon|that day|before supper|by sunset)\. .*\"Did you (.+?)(?:\?|, as)"
    )
    for _, match in matches(written, promise):
        assert match[1] == match[2]


def test_a_moral_says_what_was_done(written: list[Story]) -> None:
    deeds = {  # a moral, and what the person must have done before
        r"believed (\w+), who had told a lie|But (\w+) was sorry about the lie": (
            r"(?:\"I do not know,\"|\"I looked everywhere,\"|\"Of course I did,\"|\"No, I have not,\") said {}"
        ),
        r"trusted (\w+), who had told the truth|good that (\w+) had been honest": (
            r"(?:\"I put it [^\"]+,\"|\"I forgot,\"|\"Here it is,\") said {}"
        ),
        r"promise, and (\w+) had kept|proud of (\w+), who had kept": r"\"Yes, it is done,\" said {}",
        r"promise, and (\w+) had broken|Next time (\w+) would remember": r"\"No, I forgot to [^\"]+,\" said {}",
        r"was safe with (\w+)|trusted (\w+) with every secret": r"But {} only \w.* and said nothing",
        r"was not safe with (\w+)|So (\w+) learned not to tell": r"\"The word is \w+,\" said {}",
        r"So (\w+) learned that it is good|thanked (\w+), who liked": r"{} gave|{} let|the \w+.* got the",
    }
    for moral, deed in deeds.items():
        for text, match in matches(written, moral):
            assert re.search(deed.replace("{}", match[1] or match[2]), text), text


def test_a_text_that_contradicts_itself_is_refused_at_the_contradiction(written: list[Story]) -> None:
    text = next(story.text for story in written if '"It is lion"' in story.text.replace('lion,"', 'lion"'))
    offset = text.rindex(" lion,")
    with pytest.raises(ValueError, match=f"offset {offset} "):
        parse(text[:offset] + text[offset:].replace("lion", "candle"))
    with pytest.raises(ValueError, match="offset"):
        parse(text + " And so on.")


# --- size and distance ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(written: list[Story]) -> Tokenizer:
    return build_tokenizer(DataConfig(vocab_size=1024), [story.text for story in written[:3_000]])


def test_short_and_long_stories_fit_their_context(written: list[Story], tokenizer: Tokenizer) -> None:
    words = {long: [len(story.text.split()) for story in written if is_long(story) == long] for long in (False, True)}
    assert 0.4 < len(words[True]) / len(written) < 0.6
    assert min(words[False]) > 40 and 50 < statistics.mean(words[False]) < 70
    assert min(words[True]) > 80 and 140 < statistics.mean(words[True]) < 180 and max(words[True]) < 250
    tokens = [len(ids) + 1 for ids in tokenizer.encode_batch([story.text for story in written])]
    assert statistics.mean(size <= 384 for size in tokens) > 0.999
    vocabulary = {word.lower() for story in written for word in re.findall(r"[A-Za-z'-]+", story.text)}
    assert len(vocabulary) > 2_000


def test_many_call_backs_reach_over_more_than_64_tokens(written: list[Story], tokenizer: Tokenizer) -> None:
    """Counted from the nearest earlier place that has the same text; pronouns and numbers are left out."""
    distances = []
    for story in written[:500]:
        for choice in parse(story.text)[1]:
            option = story.text[choice.start : choice.end]
            before = story.text.rfind(option, 0, choice.start)
            if choice.kind == "callback" and before >= 0 and option.strip().lower() not in {*PRONOUNS, *NUMBERS}:
                distances.append(len(tokenizer.encode(story.text[before + len(option) : choice.start])))
    assert len(distances) > 10 * 500
    assert statistics.mean(distance > 64 for distance in distances) > 0.15
    assert statistics.mean(distance > 128 for distance in distances) > 0.04
