"""Stories whose entropy is known: the program of a seeded generator (see telling.py for how it works, words.py for
its words).

A story is woven of threads: a thing is hidden and moved, a heap is counted and shared, something is forgotten, traded,
lost, promised, whispered. Each thread has a setup, a turn and an end that asks for what was said before. A short story
(about 50 words) tells one thread; a long one (80 to 250 words) begins two to four, then turns them all, then ends them
all, so that many call-backs reach over more than 64 tokens. Who told the truth, shared or kept a promise decides the
moral.
"""

import random
from collections.abc import Collection, Iterator, Mapping
from functools import cache, partial

from gptlib.data import telling
from gptlib.data.telling import Choice, Language, Recall, Story, Table, Tale, Teller
from gptlib.data.words import LISTS

__all__ = ["Choice", "Story", "parse", "write_stories"]

Lesson = tuple[str, str]  # a key of MORALS, and whom it is about: X or Y of the thread
Thread = Iterator[Lesson | None]  # tells a setup, a turn and an end; what it teaches comes with the end


# --- threads: X is whom one is about, Y the other -----------------------------------------------------------------


def _hide(tale: Tale) -> Thread:
    """A thing is moved behind its owner's back: X looks where it was put, it is where it was moved to."""
    tale.say("{color:a COLOR} {thing:THING}. {X.Again} [put|hid|left|kept] it {spot:SPOT} and {ERRAND}.")
    yield None
    tale.say("[Soon {Y} moved|Then {Y} put|While nobody was looking, {Y} dropped|Later {Y} hid|As a joke {Y} placed]")
    tale.say("the {thing} {new:SPOT-spot}.")
    yield None
    tale.say("[At last|In the end|Before supper|After a while] {X} looked {spot}")
    tale.say(", but [the {thing} was gone|it was not there|only dust was there].")
    tale.say('"Where is my {color} {thing}?" {X.again} {ASKED}.')
    told = '"I put it {new}," said {Y}[, and there it was|, which was true].'
    lied = '"I do not know," said {Y}, but {X} found the {thing} {new}.'
    yield (("honest", "Y"), ("lied", "Y"))[tale.either(told, lied)]


def _count(tale: Tale) -> Thread:
    """A heap grows and shrinks twice; the sum is asked for."""
    tale.say("{total:START} {color:COLOR} {heap:HEAP}")
    tale.say("[on the table|in the yard|in a basket|by the door|behind the house].")
    yield None
    shared = _change(
        tale,
        ("Soon {Y} brought {few:FEW} more {heap}.", 1),
        ("Then {X} gave {few:FEW} of the {heap} to {Y}.", -1),
        ("But {few:FEW} of the {heap} were lost.", -1),
    )
    shared |= _change(
        tale,
        ("Nobody took any more.", 0),
        ("After lunch {X} let {Y} have {few:FEW}.", -1),
        ("Later {Y} found {few:FEW} more.", 1),
        ("By evening {few:FEW} were broken and thrown away.", -1),
    )
    yield None
    tale.say('"How many {color} {heap} [are there|do you have|are left] now?" {ASKED} {Y}.')
    tale.say('"[There are|I have|Exactly] {total}," said {X}.')
    yield ("shared", "X") if shared else None


def _change(tale: Tale, *changes: tuple[str, int]) -> bool:
    """Tell one change of a heap; whether it was a gift."""
    template, sign = changes[tale.either(*(template for template, _ in changes))]
    total = NUMBERS.index(tale.known["total"])
    if sign:
        total += sign * NUMBERS.index(tale.known["few"])
    tale.known["total"] = NUMBERS[total]
    return sign < 0 and "{Y}" in template


def _errand(tale: Tale) -> Thread:
    """Three things are wanted; two come back, and the third is asked for."""
    tale.say("{p:FOOD}, {q:FOOD-p} and {r:FOOD-p-q} for {dish:a DISH}")
    tale.say(", so {Y} [went|ran|walked|hurried] to the {stop:STOP}.")
    yield None
    tale.say("At the {stop} {Y} [met|talked to|helped] the {JOB} and forgot the {lost:p/q/r}.")
    tale.known["first"], tale.known["second"] = (tale.known[k] for k in "pqr" if tale.known[k] != tale.known["lost"])
    yield None
    tale.say('{Y} came [back|home] with {first} and {second}. "And the {lost}?" {ASKED} {X}.')
    told = '"I forgot," said {Y}.'
    lied = '"I looked everywhere," said {Y}, [but it was not true|which was a lie].'
    lesson = (("honest", "Y"), ("lied", "Y"))[tale.either(told, lied)]
    tale.say("[There was no|So they had to wait for the|Still, they all enjoyed the] {dish}.")
    yield lesson


def _swap(tale: Tale) -> Thread:
    """Two things change hands, or change back, or do not; who has which is recalled."""
    tale.say("{c:a COLOR} {t:THING}, and {Y} [had|carried|held|brought] {d:a COLOR-c} {u:THING-t}.")
    yield None
    tale.say('"Shall we [trade|swap]?" {ASKED} {Y}.')
    swapped = '"Yes," said {X}, and they did.'
    back = '"All right," said {X}, but soon they [wanted their own things|changed their minds and traded] back.'
    if tale.either(swapped, '"No," said {X}, [shaking|and shook] {X.her} head.', back) == 0:
        for mine, yours in ("cd", "tu"):
            tale.known[mine], tale.known[yours] = tale.known[yours], tale.known[mine]
    yield None
    tale.say("[At home|Later|After dinner] {X} showed {X.her} {KIN} the {c} {t}, and {Y} [kept|still had|cleaned] the")
    tale.say("{d} {u}.")
    yield None


def _secret(tale: Tale) -> Thread:
    """A word is whispered and asked for twice: by somebody who must not know it, and by its owner."""
    tale.say('to {Y}, "The secret word is {secret:SECRET}[. Tell nobody|. Do not forget it|, and only we know it]."')
    yield None
    tale.say("[Soon|Then|On the way home|By chance] the {JOB} [came|stopped|appeared] and asked {Y} for the secret.")
    kept, told = "But {Y} only {ACT} and said nothing.", '"The word is {secret}," said {Y}.'
    lesson = (("silent", "Y"), ("told", "Y"))[tale.either(kept, told)]
    yield None
    tale.say('[In the evening|At the door|By the fire] {X} {ASKED}, "What is the [secret|magic] word?"')
    tale.either('"It is {secret}," said {Y}.', '"Is it {SECRET-secret}?" said {Y}. "No, it is {secret}," said {X}.')
    yield lesson


def _walk(tale: Tale) -> Thread:
    """Three places in order: one is asked for by its order, and at one of them a thing was lost."""
    tale.say("to the {p:STOP}, then to the {q:STOP-p} and [at last|finally|from there] to the {r:STOP-p-q}.")
    yield None
    tale.say("At the {lost:p/q/r} {X} [lost|dropped|forgot] {color:a COLOR} {thing:THING}.")
    yield None
    tale.either(
        '"Where did you go first?" {ASKED} {Y}. "To the {p}," said {X}.',
        '"Where were you last?" {ASKED} {Y}. "At the {r}," said {X}.',
        '"Where did you go after the {p}?" {ASKED} {Y}. "To the {q}," said {X}.',
    )
    tale.say("[They found|Together they picked up|Luckily they saw] the {color} {thing} at the {lost}.")
    yield None


def _promise(tale: Tale) -> Thread:
    """What was promised is asked about; it was done, forgotten, or said to be done."""
    tale.say("{Y} to {deed:PROMISE} [before dark|by noon|that day|before supper|by sunset].")
    yield None
    tale.say("[First|But first|Instead,|Half asleep,] {X} {ERRAND}[, and then| and after that] {X.she} {ERRAND}.")
    yield None
    tale.say('"Did you {deed}[?|, as you promised?]" {ASKED} {Y}.')
    kept, broke = '"Yes, it is done," said {X}[.|, and it was.]', '"No, I forgot to {deed}," said {X}.'
    lied = '"Of course I did," said {X}, but [it was not true|that was a lie].'
    yield (("kept", "X"), ("broke", "X"), ("lied", "X"))[tale.either(kept, broke, lied)]


def _letter(tale: Tale) -> Thread:
    """A letter names a place, an hour and a thing."""
    tale.say("a letter from {X.her} {kin:KIN}: \"[Come|Hurry|Please come] to the {stop:STOP} at {hour:HOUR} o'clock")
    tale.say('and bring {color:a COLOR} {thing:THING}."')
    yield None
    tale.say("[So|Right away|At once|Without a word] {Y} looked for the {thing} and found it {SPOT}.")
    yield None
    tale.say("At {hour} o'clock {X} [stood|waited|was] at the {stop} with the {color} {thing}.")
    tale.say("[Soon {X.her} {kin} came and {ACT}|There was {X.her} {kin}, who {ACT}].")
    yield None


def _found(tale: Tale) -> Thread:
    """What is found belongs to somebody who asks for it."""
    tale.say("{color:a COLOR} {thing:THING} {NEARBY}.")
    yield None
    tale.say('"[Let us keep|You should sell|Do not touch|We must return] the {thing}," said {Y}, but {X} [only|just]')
    tale.say("{ACT}.")
    yield None
    tale.say('The {who:JOB} came by. "Have you seen my {color} {thing}?" {ASKED} the {who}.')
    gave = '"Here it is," said {X}, and the {who} gave {X.him} some {FOOD}.'
    kept = '"No, I have not," said {X}, and the {who} went away [sadly|disappointed|without a word].'
    yield (("honest", "X"), ("lied", "X"))[tale.either(gave, kept)]


def _trade(tale: Tale) -> Thread:
    """One thing is traded for another and that for a third; one of them is asked for."""
    tale.say("{c:a COLOR} {t:THING} for {d:a COLOR-c} {u:THING-t} [at the market|in town|with a sailor].")
    yield None
    tale.say("Then the {who:JOB} gave {X} {e:a COLOR-c-d} {v:THING-t-u} for the {u}.")
    yield None
    tale.either(
        '"What do you have now?" {ASKED} {Y}. "The {e} {v}," said {X}.',
        '"What did you have first?" {ASKED} {Y}. "The {c} {t}," said {X}.',
        '"What did the {who} take?" {ASKED} {Y}. "The {d} {u}," said {X}.',
    )
    yield None


def _likes(tale: Tale) -> Thread:
    """Two say what they like; each gets it, or they get each other's."""
    tale.say('what everyone liked. "I like {f:FOOD}," said {Y}. "I like {g:FOOD-f}," said the {who:JOB}.')
    yield None
    tale.say("So {X} [went|ran|rode] to the {STOP} and [bought|got|brought] {f} and {g}.")
    yield None
    given = tale.either(
        "At supper {X} gave the {f} to {Y} and the {g} to the {who}.",
        "In the evening the {who} got the {g} and {Y} got the {f}.",
        "By mistake {X} gave the {f} to the {who} and the {g} to {Y}.",
    )
    yield ("shared", "X") if given < 2 else None


def _pet(tale: Tale) -> Thread:
    """An animal with a name runs away, is called and is found."""
    tale.say("{animal:a PETS} named {pet:PET} {NEARBY}.")
    yield None
    tale.say("[But|Suddenly|In a moment|Before long] the {animal} [ran away|got scared|slipped out]")
    tale.say("and hid {spot:SPOT}.")
    yield None
    tale.say('"Where are you, {pet}?" {X} [called|shouted|cried] {ADVERB}.')
    tale.say("Then {Y} looked {spot}, and there was the {animal}.")
    tale.either('"Good {animal}!" said {X}.', '"Come here, {pet}!" said {X}.')
    yield None


PLOTS = {
    " had": _hide,
    " counted": _count,
    " needed": _errand,
    " carried": _swap,
    " whispered": _secret,
    " walked": _walk,
    " promised": _promise,
    " got": _letter,
    " found": _found,
    " traded": _trade,
    " asked": _likes,
    " met": _pet,
}
PLOT = Table(PLOTS, [1] * len(PLOTS))
THREADS = tuple(PLOTS.values())
MOST_THREADS = 3  # of a long story

MORALS = {  # {M} is whom the lesson is about
    "honest": ("From then on everybody trusted {M}, who had told the truth.", "It was good that {M} had been honest."),
    "lied": ("After that nobody believed {M}, who had told a lie.", "But {M} was sorry about the lie."),
    "kept": ("A promise is a promise, and {M} had kept it.", "Everyone was proud of {M}, who had kept a promise."),
    "broke": ("A promise is a promise, and {M} had broken it.", "Next time {M} would remember a promise."),
    "shared": ("So {M} learned that it is good to share.", "Everybody thanked {M}, who liked to share."),
    "silent": ("A secret was safe with {M}.", "Since that day people have trusted {M} with every secret."),
    "told": ("A secret was not safe with {M}.", "So {M} learned not to tell a secret."),
}


FAULTS = ("lied", "broke", "told")  # outweigh in a moral what was done well

ASIDES = (  # off the threads: they move a call-back away from what it calls back
    "The {SKY}.",
    "Close by {animal:a ANIMAL} {DEED}[.|, and so did {a ANIMAL-animal}.]",
    "By then {A} felt {FEELING}.",
    "Somewhere they heard {a NOISE}.",
    "To pass the time they played {GAME}.",
    "By the road grew {a PLANT}.",
)
PAUSES = ("Before long the {SKY}.", "An hour later the {SKY}.", "For a while {A} and {B} talked about it.")
RELATIVES = {"friend": "NAME", "sister": "GIRL", "brother": "BOY", "cousin": "NAME", "neighbor": "NAME"}


# --- the story ----------------------------------------------------------------------------------------------------


def tell_story(language: Language, teller: Teller) -> None:
    """Tell one story, short or long, with the words of `language`."""
    tale, when = Tale(teller, language), "{weather:WEATHER} {time:TIME}"
    opening = tale.begin(
        "Once upon a time there was", f"One {when},", f"On a {when},", "Long ago there lived", f"It was a {when}."
    )
    (_tell_long if opening in (0, 3) else _tell_short)(tale)


def _tell_short(tale: Tale) -> None:
    _meet(tale, "A", "NAME")
    _gather(tale)
    thread = _thread(tale, [])
    next(thread)
    next(thread)
    if lesson := next(thread):
        _tell_moral(tale, lesson)
    else:
        tale.either(
            "That {weather} {time} {A} was {FEELING}.",
            '"What a {weather} {time}!" said {A}.',
            "Later {B} told {B.her} {KIN} about {A}.",
        )


def _tell_long(tale: Tale) -> None:
    tale.say("{a TRAIT}")
    _meet(tale, "A", ("GIRL", "BOY")[tale.either("girl named", "boy named")])
    tale.say(". {A.She} lived {home:HOME} and loved {hobby:HOBBY}. One {weather:WEATHER} {time:TIME}, {A}")
    _gather(tale)
    used: list[int] = []
    threads = [_thread(tale, used)]
    next(threads[0])
    tale.either(*ASIDES)
    tale.say("[Then|Later|Meanwhile]")
    more = True
    while more:
        threads.append(_thread(tale, used))
        next(threads[-1])
        more = tale.either(*PAUSES, *["After that"] * (len(threads) < MOST_THREADS)) == len(PAUSES)
    for thread in threads:
        next(thread)
    tale.either(*ASIDES)
    lessons = [lesson for thread in threads if (lesson := next(thread))]
    if lessons:
        _tell_moral(tale, next((lesson for lesson in lessons if lesson[0] in FAULTS), lessons[0]))
    tale.either(
        "At last {A} went back to {hobby}.",
        "At bedtime, {home}, {A} told {A.her} {KIN} about the {weather} {time}.",
        "That {time} {A} and {B} were {FEELING}.",
    )


def _tell_moral(tale: Tale, lesson: tuple[str, Recall | Table]) -> None:
    key, tale.known["M"] = lesson
    tale.either(*MORALS[key])


def _thread(story: Tale, used: list[int]) -> Iterator[tuple[str, Recall | Table] | None]:
    """A thread, its setup not told yet, about A or B and of a plot that is not used; its lesson with a name."""
    story.say("{X:A/B}")
    plot = story.teller.choose(PLOT, used)
    used.append(plot)
    tale = Tale(story.teller, story.language)
    a_is_x = story.known["X"] == story.known["A"]
    for role, who in zip("XY", "AB" if a_is_x else "BA", strict=True):
        _cast(tale, role, story.known[who])
    for lesson in THREADS[plot](tale):
        yield lesson and (lesson[0], tale.known[lesson[1]])


def _meet(tale: Tale, role: str, table: str) -> None:
    """Choose a person from a list of names, another one than A."""
    tale.say(f"{{{role}:{table}{'-A' * (role != 'A')}}}")
    _cast(tale, role, tale.known[role])


def _gather(tale: Tale) -> None:
    """Say who is with A, and where."""
    tale.say("and {A.her}")
    _meet(tale, "B", tuple(RELATIVES.values())[tale.either(*RELATIVES)])
    tale.say("[were|sat|played|worked] {SCENE}.")


def _cast(tale: Tale, role: str, name: Recall | Table) -> None:
    assert isinstance(name, Recall)
    tale.known |= _person(role, name, name in tale.language.tables["GIRL"].index)


@cache
def _person(role: str, name: Recall, girl: bool) -> dict[str, Recall | Table]:
    """How a person is spoken of, by the names that templates use."""
    she, her, him = (" she", " her", " her") if girl else (" he", " his", " him")
    words = {"": name, ".she": she, ".She": she.title(), ".her": her, ".Her": her.title(), ".him": him}
    known: dict[str, Recall | Table] = {role + key: Recall(word) for key, word in words.items()}
    for key, pronoun in ((".again", she), (".Again", she.title())):
        known[role + key] = Table((name, pronoun), (1, 3), "callback")
    return known


# --- writing and parsing ------------------------------------------------------------------------------------------


def _lists(texts: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The lists of words.py, the names of both in one by turns, and numbers to start a count with and to change it."""
    lists = {name: tuple(" ".join(word.split()) for word in text.split(",")) for name, text in texts.items()}
    names = [name for pair in zip(lists["GIRL"], lists["BOY"], strict=True) for name in pair]
    numbers = lists.pop("NUMBER")
    return lists | {"NAME": tuple(names), "START": numbers[10:16], "FEW": numbers[2:5]}


NUMBERS = tuple(Recall(f" {' '.join(word.split())}") for word in LISTS["NUMBER"].split(","))  # by value
story = partial(tell_story, Language(_lists(LISTS)))


def write_stories(seed: int, count: int, exclude: Collection[str] = ()) -> list[Story]:
    """`count` stories, the same for a seed on every platform and Python version; texts in `exclude` are drawn anew."""
    excluded = frozenset(exclude)
    draw = random.Random(seed).random  # the one method whose numbers Python promises to keep
    stories: list[Story] = []
    while len(stories) < count:
        written = telling.write(story, draw)
        if written.text not in excluded:
            stories.append(written)
    return stories


def parse(text: str) -> tuple[float, list[Choice]]:
    """The exact -ln p of a story in nats, and its decisions in order.

    Raises ValueError naming the offset where the text is none that the generator can write.
    """
    return telling.parse(text, story)
