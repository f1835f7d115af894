"""Stories whose entropy is known: the words and the program of a seeded generator (see telling.py for how it works).

A story has an opening (weather, two people, a place), one of six plots and an ending, 40 to 80 words in all. The plots
need memory: where a thing was put and where it was moved to, how many are left, what is missing from a list, who has
what after a swap, a secret word, the order of three places. Asides move these call-backs away from what they recall.
"""

import random
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache

from gptlib.data import telling
from gptlib.data.telling import Choice, Recall, Story, Table, Teller

__all__ = ["Choice", "Story", "parse", "write_stories"]


def _spaced(options: str) -> tuple[Recall, ...]:
    return tuple(Recall(f" {option}") for option in options.split(", "))


def _listing(options: str) -> Table:
    return Table(_spaced(options))


@cache
def _without(table: Table, *excluded: Recall) -> Table:
    kept = [pair for pair in zip(table.options, table.weights, strict=True) if pair[0] not in excluded]
    return Table([option for option, _ in kept], [weight for _, weight in kept])


@cache
def _one_of(*options: Recall) -> Table:
    return Table(options, [1] * len(options), "callback")


# --- words ------------------------------------------------------------------------------------------------------

GIRLS = _listing(
    "Anna, Lily, Mia, Sara, Rose, Emma, Nora, Ruth, Ella, Ivy, Jane, Kate, Lucy, Maya, Nina, Olga, Tara, Vera, Zoe"
)
BOYS = _listing(
    "Tom, Ben, Max, Sam, Jack, Leo, Paul, Finn, Adam, Carl, David, Fred, Hugo, Ivan, Luke, Mark, Nick, Peter, Theo"
)
WEATHERS = _listing("sunny, cold, warm, windy, wet, hot, rainy, snowy")
TIMES = _listing("day, morning, evening, Sunday, Friday")
BEING = _listing("were, sat, played, worked")
SCENES = _listing(
    "at home, in the garden, in the park, by the river, at school, in the kitchen, on the farm, by the lake, "
    "in the yard, at the beach, in the barn, on the hill, under a tree, near the old wall, in the attic, in a boat"
)
COLORS = _listing("red, blue, green, white, black, yellow, brown, pink, purple, golden, silver, tiny, heavy, striped")
THINGS = _listing(
    "ball, hat, cup, kite, book, drum, key, doll, ring, bell, coat, lamp, box of paint, mug, rope, shovel, toy car, "
    "whistle, basket, blanket, clock, crown, flute, globe, hammer, jar, kettle, letter, mirror, necklace, pencil, "
    "ribbon, scarf, spoon, ticket"
)
HEAPS = _listing(
    "shells, stones, apples, coins, buttons, leaves, marbles, nuts, pears, beads, berries, cards, cherries, "
    "eggs, flowers, lemons, nails, plums, stamps"
)
SPOTS = _listing(
    "under the bed, in the box, behind the door, on the shelf, under the table, in the drawer, behind the sofa, "
    "in the bag, under the rug, on the chair, in the closet, behind the curtain, beside the stove, in the bucket, "
    "inside the piano, under the stairs, near the window, on the roof, between two pillows"
)
ERRANDS = _listing(
    "went to sleep, went to feed the cat, went to buy bread, ran out to play, left to get water, went to call a friend,"
    " left to wash the dishes, went to pick flowers, ran off to help the farmer, went to sing, "
    "ran out to see the horses"
)
MOVES = _listing("hid, put, left, placed, dropped, buried")
FOODS = _listing(
    "bread, milk, eggs, apples, cheese, rice, butter, honey, soup, fish, corn, sugar, salt, tea, carrots, onions, "
    "peas, beans, jam, grapes, pepper"
)
STOPS = _listing(
    "mill, bridge, forest, market, farm, well, station, tower, castle, library, harbor, bakery, meadow, museum, "
    "village, orchard, cave, island"
)
SECRETS = _listing(
    "moon, lion, river, candle, tiger, winter, garlic, rocket, pumpkin, thunder, velvet, cactus, dragon, engine, "
    "lantern, mountain, ocean, parrot, rainbow, oven"
)
ANIMALS = _listing(
    "dog, cat, bird, cow, horse, fox, duck, goat, hen, mouse, pig, rabbit, sheep, frog, squirrel, bee, raven, "
    "donkey, goose, lamb"
)
DEEDS = _listing(
    "slept, ran, sat, jumped, played, hid, cried, waited, danced, drank, rolled, sneezed, looked for food, chased a fly"
)
NEARBY = _listing(
    "near the gate, in the grass, by the fence, on the road, in the mud, by the pond, in the sun, behind the house, "
    "on a branch, next to the cart, under the bench, across the street"
)
SKIES = _listing(
    "wind was cold, sun was low, church bell rang, grass was wet, clouds were gray, moon came out, birds were singing, "
    "road was empty, shops were closed, river was high, first star was out, air smelled of smoke"
)
FEELINGS = _listing(
    "happy, sad, glad, tired, proud, hungry, angry, calm, afraid, excited, lonely, surprised, sleepy, grateful, "
    "jealous, nervous"
)
KIN = _listing("mother, father, aunt, uncle, grandmother, grandfather, teacher, neighbor")
ACTS = _listing("smiled, laughed, nodded, clapped, sighed, bowed, waved, shouted, whistled, cheered")
ASKED = _listing("asked, called, cried, whispered")
NUMBERS = _spaced(
    "zero, one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, fourteen, fifteen, "
    "sixteen, seventeen, eighteen"
)
EVERYBODY = Table(GIRLS.options + BOYS.options, GIRLS.weights + BOYS.weights)
RELATIVES = {" friend": EVERYBODY, " sister": GIRLS, " brother": BOYS}
RELATION = Table(RELATIVES)
OPENING = Table(("One", "On a", "It was a"))
ASIDE = Table((". A", ". The", " and"), (5, 3, 2))
DEED_END = Table((" and", "."), (1, 3))
HEAP = Table(NUMBERS[8:13])
FEW = Table(NUMBERS[2:4])  # so that a heap that shrinks twice keeps a plural
CHANGE = Table((" Soon came", " But", ' "How many'), (4, 4, 3))
SWAP = Table((" They swapped.", " They swapped, but soon they swapped back.", " They did not swap."), (5, 3, 2))
GUESS = Table((' "Is it', ' "It is'))
ORDER = Table((" first", " last"))
ENDING = Table((" That", ' "What a', " Later"), (4, 3, 3))


# --- the program ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Person:
    name: Recall
    she: Recall
    her: Recall  # possessive
    again: Table  # how the person is spoken of again, by name or by pronoun
    again_first: Table  # the same at the start of a sentence


@cache
def _person(name: Recall) -> Person:
    she, her = (" she", " her") if name in GIRLS.options else (" he", " his")
    again, again_first = (Table((name, pronoun), (1, 3), "callback") for pronoun in (she, she.title()))
    return Person(name, Recall(she), Recall(her), again, again_first)


@dataclass(frozen=True)
class Scene:
    """What the opening decides and the rest of the story recalls."""

    hero: Person
    other: Person
    weather: Recall
    time: Recall


def story(t: Teller) -> None:
    """Tell one story: an opening, one of six plots, an ending."""
    scene = _opening(t)
    t.tell(scene.hero.name)
    PLOTS[t.choose(PLOT)](t, scene.hero, scene.other)
    _ending(t, scene)


def _opening(t: Teller) -> Scene:
    first = t.choose(OPENING)
    weather, time = t.choose(WEATHERS), t.choose(TIMES)
    t.tell("." if first == "It was a" else ",")
    hero = _person(t.choose(EVERYBODY))
    t.tell(" and", hero.her)
    relation = t.choose(RELATION)
    other = _person(t.choose(_without(RELATIVES[relation], hero.name)))
    t.tell(BEING, SCENES, ".")
    return Scene(hero, other, weather, time)


def _ending(t: Teller, scene: Scene) -> None:
    hero, other = scene.hero, scene.other
    ending = t.choose(ENDING)
    if ending == " That":
        t.tell(scene.weather, scene.time, hero.name, " was", FEELINGS, ".")
    elif ending == ' "What a':
        t.tell(scene.weather, scene.time, '!" said', hero.name, ".")
    else:
        t.tell(other.name, " told", other.her, KIN, " about", hero.name, ".")


def _aside(t: Teller) -> None:
    """End a sentence with something off the plot, which moves a call-back away from what it calls back."""
    aside = t.choose(ASIDE)
    if aside == ". The":
        t.tell(SKIES, ".")
    elif aside == " and":
        t.tell(" felt", FEELINGS, ".")
    else:
        t.tell(ANIMALS, DEEDS)
        if t.choose(DEED_END) == " and":
            t.tell(DEEDS, NEARBY, ".")


def _three(t: Teller, table: Table, article: str = "") -> list[Recall]:
    chosen = [t.choose(table)]
    for joint in (",", " and"):
        t.tell(joint + article)
        chosen.append(t.choose(_without(table, *chosen)))
    return chosen


def _hide(t: Teller, hero: Person, other: Person) -> None:
    """A thing is moved behind its owner's back: she looks where she put it, it is where it was moved to."""
    color, thing = t.choose(COLORS), t.choose(THINGS)
    t.tell(".", hero.again_first, " put it")
    spot = t.choose(SPOTS)
    t.tell(" and", ERRANDS)
    _aside(t)
    t.tell(other.name, MOVES, " it")
    new_spot = t.choose(_without(SPOTS, spot))
    t.tell(".", hero.again_first, " looked", spot, '. "Where is my', color, thing, '?"', hero.again, ASKED)
    t.tell('. "It is', new_spot, '," said', other.name, ".")


def _count(t: Teller, hero: Person, other: Person) -> None:
    """A heap grows and shrinks; the sum is asked for."""
    start = t.choose(HEAP)
    total = NUMBERS.index(start)
    color, heap = t.choose(COLORS), t.choose(HEAPS)
    _aside(t)
    for _ in range(2):
        change = t.choose(CHANGE)
        if change == ' "How many':
            break
        few = NUMBERS.index(t.choose(FEW))
        total += few if change == " Soon came" else -few
        t.tell(" more." if change == " Soon came" else " were lost.")
    else:
        t.tell(' "How many')
    t.tell(color, heap, ' are there?"', ASKED, other.name, '. "There are', NUMBERS[total], '," said', hero.name, ".")


def _errand(t: Teller, hero: Person, other: Person) -> None:
    """Three things are wanted; two come back, and the third is asked for."""
    foods = _three(t, FOODS)
    t.tell(" from the")
    stop = t.choose(STOPS)
    t.tell(", so", other.name, " went there")
    _aside(t)
    t.tell(" At the", stop, other.again, " forgot the")
    forgotten = t.choose(_one_of(*foods))
    first, second = (food for food in foods if food != forgotten)
    t.tell(" and came back with", first, " and", second, '. "I need', forgotten, ' too," said', hero.name, ".")


def _swap(t: Teller, hero: Person, other: Person) -> None:
    """Two things change hands once, twice or not at all; who has which is recalled."""
    mine = t.choose(COLORS), t.choose(THINGS)
    t.tell(" and", other.name, " had a")
    yours = t.choose(_without(COLORS, mine[0])), t.choose(_without(THINGS, mine[1]))
    _aside(t)
    if t.choose(SWAP) == " They swapped.":
        mine, yours = yours, mine
    t.tell(" At home,", hero.name, " showed", hero.her, KIN, " the", *mine, " and", other.name, " had the", *yours, ".")


def _secret(t: Teller, hero: Person, other: Person) -> None:
    """A word is whispered at the start and asked for at the end."""
    t.tell(other.name, ', "The word is')
    secret = t.choose(SECRETS)
    t.tell('." Then', hero.she, ERRANDS)
    _aside(t)
    t.tell(" When", hero.again, ' came back, it was dark. "What is the word?"', ASKED, hero.name, ".")
    if t.choose(GUESS) == ' "Is it':
        t.tell(_without(SECRETS, secret), '?" "No!" "It is')
    t.tell(secret, '," said', other.name, ".")


def _walk(t: Teller, hero: Person, other: Person) -> None:
    """Three places in order: one is asked for by its order, and at one of them a thing was lost."""
    stops = _three(t, STOPS, " the")
    _aside(t)
    t.tell(" At the")
    lost = t.choose(_one_of(*stops))
    t.tell(hero.again, " lost a")
    color, thing = t.choose(COLORS), t.choose(THINGS)
    t.tell('. "Where did you go')
    order = t.choose(ORDER)
    t.tell('?"', ASKED, other.name, '. "To the', stops[0] if order == " first" else stops[2], '." They found the')
    t.tell(color, thing, " at the", lost, ".")


PLOTS = {
    " had a": _hide,
    " counted": _count,
    " needed": _errand,
    " carried a": _swap,
    " whispered to": _secret,
    " walked to the": _walk,
}
PLOT = Table(PLOTS, [1] * len(PLOTS))


# --- writing and parsing ----------------------------------------------------------------------------------------


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
