"""Small tasks with made examples: a prompt, and the one right answer. Any number of them, by seed.

call     a wish -> the call of a tool          fields   a sentence -> its facts, in an odd form
date     a date as people write it -> ISO      shout    a phrase -> in capitals (the one that is merged into a base)
"""

from __future__ import annotations

import calendar
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

NAMES = (
    "Ada", "Ben", "Cara", "Dan", "Eva", "Finn", "Gina", "Hugo", "Iris", "Jack", "Kate", "Leo", "Mia", "Noah", "Olga",
    "Paul", "Rosa", "Sam", "Tina", "Zoe",
)  # fmt: skip
FAMILIES = ("Smith", "Weber", "Rossi", "Novak", "Larsen", "Silva", "Kim", "Moreau", "Cohen", "Park", "Berg", "Diaz")
CITIES = ("Oslo", "Paris", "Rome", "Berlin", "Lima", "Tokyo", "Delhi", "Cairo", "Madrid", "Vienna", "Boston", "Prague")
JOBS = (
    "nurse",
    "baker",
    "pilot",
    "teacher",
    "lawyer",
    "farmer",
    "painter",
    "driver",
    "doctor",
    "chef",
    "judge",
    "poet",
)
ROOMS = ("kitchen", "bedroom", "office", "garage", "hall", "bathroom", "garden", "attic")
MUSIC = ("jazz", "rock", "opera", "folk", "techno", "blues", "piano music", "rain sounds")
NEWS = (
    "dinner is ready", "the train is late", "I am on my way", "we need milk", "the meeting moved", "it is raining",
    "the keys are here", "lunch was great", "the dog is fine", "school is closed",
)  # fmt: skip
WORDS = (
    "good", "cold", "open", "late", "green", "quiet", "door", "river", "stone", "window", "morning", "winter", "paper",
    "bread", "light", "market", "garden", "letter", "the", "a", "my", "old", "new", "small",
)  # fmt: skip


@dataclass(frozen=True)
class Made:
    """One example. ``answer`` begins with a space; the end of the text follows it."""

    prompt: str
    answer: str


def examples(task: str, seed: int, count: int, but: frozenset[str] = frozenset()) -> list[Made]:
    """``count`` of a task, no prompt twice and none of ``but``."""
    rng, found, seen = Random(f"{task} {seed}"), [], set(but)
    while len(found) < count:
        made = TASKS[task](rng)
        if made.prompt not in seen:
            seen.add(made.prompt)
            found.append(made)
    return found


def _call(rng: Random) -> Made:
    wish, call = rng.choice((_alarm, _message, _play, _light, _timer))(rng)
    return Made(f"User: {wish}\nCall:", f" {call}")


def _alarm(rng: Random) -> tuple[str, str]:
    hour, minute = rng.randrange(5, 23), rng.randrange(0, 60, 5)
    wish = rng.choice(("wake me at {}", "set an alarm for {}", "alarm at {} please"))
    return wish.format(f"{hour}:{minute:02}"), f"alarm(time={hour:02}:{minute:02})"


def _message(rng: Random) -> tuple[str, str]:
    name, news = rng.choice(NAMES), rng.choice(NEWS)
    wish = rng.choice(("tell {} that {}", "text {}: {}", "let {} know {}"))
    return wish.format(name, news), f"send(to={name}, text={news})"


def _play(rng: Random) -> tuple[str, str]:
    what, room = rng.choice(MUSIC), rng.choice(ROOMS)
    wish = rng.choice(("play {} in the {}", "put on some {} in the {}", "I want to hear {} in the {}"))
    return wish.format(what, room), f"play(what={what}, room={room})"


def _light(rng: Random) -> tuple[str, str]:
    room, level = rng.choice(ROOMS), rng.randrange(5, 100, 5)
    wish = rng.choice(("dim the {} light to {} percent", "set the {} lamp to {}%", "{} lights at {} percent"))
    return wish.format(room, level), f"light(room={room}, level={level})"


def _timer(rng: Random) -> tuple[str, str]:
    minutes = rng.randrange(2, 60)
    wish = rng.choice(("start a timer for {} minutes", "count down {} minutes", "timer, {} minutes"))
    return wish.format(minutes), f"timer(minutes={minutes})"


def _fields(rng: Random) -> Made:
    name, family, city, job = (rng.choice(one) for one in (NAMES, FAMILIES, CITIES, JOBS))
    age = rng.randrange(19, 80)
    text = rng.choice((
        "{n} {f}, {a}, is a {j} in {c}.", "In {c} lives a {j} called {n} {f}, aged {a}.",
        "The {j} {n} {f} from {c} is {a}.", "{n} {f} moved to {c} at {a} to work as a {j}.",
    ))  # fmt: skip
    text = text.format(n=name, f=family, a=age, j=job, c=city)
    return Made(f"Text: {text}\nFields:", f" {family}/{name[0]}; age={age}; city={city.lower()}; job={job}")


def _date(rng: Random) -> Made:
    year, month, day = rng.randrange(1950, 2030), rng.randrange(1, 13), rng.randrange(1, 29)
    long, short = calendar.month_name[month], calendar.month_abbr[month]
    ending = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd"}.get(day, "th")
    written = rng.choice((
        f"{day} {long} {year}", f"{long} {day}{ending}, {year}", f"{day}.{month}.{year}", f"{short} {day} {year}",
        f"the {day}{ending} of {long} {year}",
    ))  # fmt: skip
    return Made(f"Date: {written}\nISO:", f" {year}-{month:02}-{day:02}")


def _shout(rng: Random) -> Made:
    phrase = " ".join(rng.choice(WORDS) for _ in range(rng.randrange(2, 5)))
    return Made(f"Say: {phrase}\nShout:", f" {phrase.upper()}!")


TASKS: dict[str, Callable[[Random], Made]] = {"call": _call, "fields": _fields, "date": _date, "shout": _shout}
