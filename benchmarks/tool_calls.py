"""Requests in plain words and the calls they ask for: the data of the shipped adapter ``tool-call``, and its score.

    python -m benchmarks.tool_calls data FOLDER     the files of COUNTS
    python -m benchmarks.tool_calls score FOLDER [--adapter NAME] [--split fresh]    exact match on held_out.jsonl
    python -m benchmarks.tool_calls mean FOLDER --of ADAPTER ADAPTER ...             their mean, in float16, as FOLDER

All of it is made up by this program from lists and patterns, the same for the same seed. What is held out shares no
value with what is trained on (no name, city, item, ...), and half of it is worded in ways that are never trained on. A
request comes with three tools, of which one or none serves; where none does, the answer is ``NONE``.
"""

from __future__ import annotations

import argparse
import json
import random
import string
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as as_safetensors

from pocketgem.adapters.dialect import TEMPLATE, TOKENS, read_dialect
from pocketgem.adapters.peft import CONFIG, WEIGHTS
from pocketgem.adapters.where import where_is
from pocketgem.checkpoint.durable import new_folder
from pocketgem.checkpoint.save_safetensors import write_synced
from pocketgem.llm import LLM

NONE = "None of my tools can do that."
SHARE_NONE, SHARE_RESULT = 0.1, 0.1  # of the examples: no tool serves; a tool has answered and its result is to be told
MORE_NONE = 0.3  # in what is trained on second: the first training learned to call, and never to refuse
LAST_NONE = 0.15  # in what is trained on last, in more words: what was learned from equal shares refuses too much
BEFORE = ("Please", "Hey,", "OK,", "Hi,", "Could you help me:", "Listen:", "Now", "So,", "Well,", "One thing:")
AFTER = ("please", "now", "thanks", "for me", "if you can", "right away", "will you", "as soon as possible", "ok?", "!")
DECORATED = 0.6  # of the last trainings' requests
TRAINED = {"train": 2400, "more": 2400, "choose": 4800, "last": 2400, "end": 2400, "still": 2400}
HELD_OUT = {"held_out": 400, "fresh": 400}  # the second was looked at once, when all was done
COUNTS = {**TRAINED, "valid": 80, **HELD_OUT}
SEEDS = {"still": "end"}  # it was another "end" when it was trained on

# Values of texts. Every fourth is held out.
VALUES = {
    "name": "Anna Ben Carla David Emma Felix Greta Hugo Ines Jonas Klara Leo Maria Noah Olga Paul Rosa Sam Tina Umar "
    "Vera Will Yara Zoe Alice Bruno Chloe Dario Elena Fatima George Hana Ivan Julia Kenji Laura Marco Nina Oscar Priya",
    "city": "Paris London Tokyo Berlin Madrid Rome Oslo Cairo Lima Delhi Seoul Dublin Vienna Prague Lisbon Athens "
    "Warsaw Geneva Boston Denver Toronto Sydney Nairobi Mumbai Zurich Munich Naples Seville Hamburg Kyoto Dallas Perth",
    "artist": "Adele Bach Beyonce Bowie Chopin Coldplay Drake Eminem Enya Madonna Metallica Mozart Muse Nirvana Oasis "
    "Prince Queen Radiohead Rihanna Sade Shakira Sting Toto Vivaldi Wagner Abba Blur Cher Dido Elvis Genesis Kraftwerk",
    "item": "milk bread eggs butter rice apples pasta cheese coffee tea sugar salt flour honey onions carrots soap "
    "batteries candles paper pepper yogurt bananas tomatoes lemons beans oats garlic spinach chocolate napkins olives",
    "room": "kitchen bedroom bathroom garage hallway office cellar attic nursery library balcony garden",
    "place": "airport station museum library hospital harbour stadium market theatre university zoo castle park beach "
    "cathedral pharmacy",
    "thing": "I am late|the train is delayed|dinner is ready|I will call tomorrow|the keys are under the mat|"
    "we meet at noon|the car is fixed|happy birthday|I found your phone|the meeting is moved|see you on Sunday|"
    "the door is open|I am on my way|the parcel came|bring an umbrella|thanks for the help",
    "title": "dentist|team lunch|yoga class|parents evening|budget review|piano lesson|car service|book club|"
    "job interview|doctor visit|football match|wedding rehearsal|tax appointment|house viewing|school play|flu shot",
    "currency": "euros dollars pounds yen francs rupees pesos kronor",
    "day": "today tomorrow Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
}  # fmt: skip
CLOSED = {"day", "currency", "room"}  # of which nothing is held out: they are what the tool takes


@dataclass(frozen=True)
class Tool:
    """A function, what its parameters are filled from, and how people ask for it: the last two ways are held out."""

    name: str
    parameters: Mapping[str, str]  # parameter -> a list of VALUES, or a range of whole numbers "1-90"
    wordings: tuple[str, ...]
    also: tuple[str, ...]  # more ways, for what is trained on after the first two times,
    still: tuple[str, ...]  # and for what is trained on last

    def declaration(self) -> dict[str, Any]:
        """As OpenAI has it."""
        types = {key: "integer" if filler[0].isdigit() else "string" for key, filler in self.parameters.items()}
        properties = {key: {"type": kind} for key, kind in types.items()}
        schema = {"type": "object", "properties": properties, "required": [*properties]}
        return {"type": "function", "function": {"name": self.name, "parameters": schema}}


TOOLS = (
    Tool("set_timer", {"minutes": "1-90"}, (
        "Set a timer for {minutes} minutes", "Start a {minutes} minute timer", "Timer, {minutes} minutes please",
        "Remind me in {minutes} minutes", "Count down {minutes} minutes", "I need a timer of {minutes} minutes",
        "Let me know when {minutes} minutes are over", "{minutes} minutes, go", "Beep after {minutes} minutes",
        "Egg timer, {minutes} minutes",
        "Give me {minutes} minutes on the clock", "Ring in {minutes} minutes"),
    (
        "{minutes} minutes from now, ping me", "Time {minutes} minutes for the pasta",
        "Tell me after {minutes} minutes", "Timer please: {minutes} minutes", "Can you time {minutes} minutes?",
        "Run a countdown from {minutes} minutes", "I would like to be warned in {minutes} minutes",
        "Stop me after {minutes} minutes"),
    (
        "Timer of {minutes} minutes, please", "Let {minutes} minutes pass, then tell me",
        "My tea needs {minutes} minutes", "Alert me once {minutes} minutes have passed",
        "Could you count {minutes} minutes?", "Wait {minutes} minutes and then call out",
        "Only {minutes} minutes, then stop me", "Measure {minutes} minutes")),
    Tool("set_alarm", {"hour": "0-23", "minute": "10-59"}, (
        "Wake me at {hour}:{minute}", "Set an alarm for {hour}:{minute}", "Alarm at {hour}:{minute} please",
        "I have to get up at {hour}:{minute}", "Can you wake me up at {hour}:{minute}?", "New alarm, {hour}:{minute}",
        "Get me out of bed at {hour}:{minute}", "{hour}:{minute} alarm", "I want to wake up at {hour}:{minute}",
        "Tomorrow I rise at {hour}:{minute}",
        "Make sure I am awake by {hour}:{minute}", "Please let the alarm go off at {hour}:{minute}"),
    (
        "Put the alarm on {hour}:{minute}", "Wake up call at {hour}:{minute}", "At {hour}:{minute} I must be up",
        "Morning alarm, {hour}:{minute}", "I would like to be woken at {hour}:{minute}",
        "Get me up by {hour}:{minute}", "Do not let me sleep past {hour}:{minute}",
        "My alarm should be {hour}:{minute}"),
    (
        "My train leaves early, wake me at {hour}:{minute}", "Alarm clock to {hour}:{minute}",
        "{hour}:{minute} is when I must rise", "Can you get me up at {hour}:{minute}?",
        "Schedule my wake up for {hour}:{minute}", "Sound the alarm at {hour}:{minute}",
        "I need waking at {hour}:{minute}", "Let me sleep until {hour}:{minute}")),
    Tool("call", {"name": "name"}, (
        "Phone {name}", "Call {name}", "Ring {name} for me", "Give {name} a call", "I want to talk to {name}",
        "Start a call with {name}", "I need to speak with {name}", "Connect me with {name}", "Reach {name} by phone",
        "Dial {name}", "Get {name} on the line", "Can you put me through to {name}?"),
    (
        "Telephone {name}", "Make a call to {name}", "Let me speak to {name}", "I would like to ring {name}",
        "Try {name} on the phone", "Could you phone {name}?", "Start ringing {name}", "A phone call with {name}"),
    (
        "Could I have a word with {name}?", "{name}, by phone please", "Time to call {name}",
        "I must talk to {name} now", "Is {name} free for a call?", "Let us phone {name}",
        "Find {name}'s number and ring it", "It is urgent, I have to reach {name}")),
    Tool("send_message", {"to": "name", "text": "thing"}, (
        "Tell {to} that {text}", "Text {to}: {text}", "Send {to} a message saying {text}", "Write to {to}: {text}",
        "Message {to} that {text}", "Let {to} know that {text}",
        "Say to {to}: {text}", "Please inform {to} that {text}", "A message for {to}: {text}",
        "Give {to} the news that {text}",
        "Drop {to} a line: {text}", "{to} should hear that {text}"),
    (
        "Send this to {to}: {text}", "Can you text {to} that {text}?", "I want {to} to know that {text}",
        "Pass on to {to} that {text}", "Message for {to}, {text}", "Type to {to}: {text}",
        "Make {to} aware that {text}", "Report to {to} that {text}"),
    (
        "{to} must know: {text}", "Let {to} read that {text}", "Could you write {to} that {text}?",
        "Notify {to} that {text}", "Can {to} be told that {text}?", "I have something for {to}: {text}",
        "Text message to {to}, {text}", "Would you mention to {to} that {text}?")),
    Tool("get_weather", {"city": "city", "day": "day"}, (
        "What is the weather in {city} {day}?", "Will it rain in {city} {day}?", "Weather for {city}, {day}",
        "How warm is it in {city} {day}?", "Do I need a coat in {city} {day}?", "Forecast for {city} {day} please",
        "Is {city} going to be cold {day}?", "Tell me the weather for {day} in {city}", "Rain in {city} {day}?",
        "{city} weather {day}",
        "Is it going to be sunny in {city} {day}?", "What does the sky look like in {city} {day}?"),
    (
        "How will the weather be in {city} {day}?", "Should I take an umbrella in {city} {day}?",
        "Is there snow in {city} {day}?", "What temperature will {city} have {day}?",
        "Check the forecast of {city} for {day}", "I wonder how the weather in {city} is {day}",
        "Will {city} be windy {day}?", "Can I go without a jacket in {city} {day}?"),
    (
        "Umbrella needed in {city} {day}?", "Sunglasses or raincoat in {city} {day}?",
        "Will there be a storm in {city} {day}?", "How many degrees in {city} {day}?",
        "Is {day} good for a walk in {city}?", "What does the forecast say for {city} {day}?",
        "Hot or cold in {city} {day}?", "Are there clouds over {city} {day}?")),
    Tool("play_music", {"artist": "artist"}, (
        "Play something by {artist}", "Put on {artist}", "I want to hear {artist}", "Play {artist}",
        "Start {artist}", "I am in the mood for {artist}", "Can I hear {artist}?", "Turn on some {artist}",
        "Some {artist} please", "Music by {artist}", "Let us listen to {artist}", "How about a song of {artist}?"),
    (
        "I would love to hear {artist}", "Give me some {artist}", "Could you play {artist}?",
        "Start a playlist of {artist}", "Time for {artist}", "Put some {artist} on the speakers",
        "Anything by {artist}, loud", "My evening needs {artist}"),
    (
        "Something of {artist} would be nice", "Any album by {artist}", "Entertain me with {artist}",
        "Let {artist} play", "Can you find me some {artist} to hear?", "The best of {artist}, please",
        "Make it {artist} tonight", "A track from {artist}")),
    Tool("light_on", {"room": "room"}, (
        "Turn on the light in the {room}", "Lights on in the {room}", "Switch the {room} light on",
        "Make it bright in the {room}", "Light in the {room} please", "{room} light on",
        "Brighten the {room}", "The {room} is too dark", "Illuminate the {room}", "I need light in the {room}",
        "It is dark in the {room}", "I cannot see a thing in the {room}"),
    (
        "Can you light up the {room}?", "Put the light on in the {room}", "The {room} needs light",
        "I want the {room} light on", "Lamp on in the {room}", "Get some light into the {room}",
        "Please have the {room} lit", "Too little light in the {room}"),
    (
        "Let there be light in the {room}", "I am in the {room} and need a lamp", "Could the {room} be brighter?",
        "Switch on the lamp of the {room}", "Who turned off the {room}? Light, please",
        "Have the lamps on in the {room}", "More light in the {room}",
        "A bright {room}, please")),
    Tool("light_off", {"room": "room"}, (
        "Turn off the light in the {room}", "Lights off in the {room}", "Switch the {room} light off",
        "Make it dark in the {room}", "No light in the {room} please", "{room} light off",
        "Darken the {room}", "The {room} light is not needed", "Put out the light in the {room}",
        "Shut the {room} light off",
        "Kill the lights in the {room}", "The {room} can go dark now"),
    (
        "Put the {room} light off", "Can the light in the {room} be off?", "The {room} should be dark",
        "I want no light in the {room}", "Lamp off in the {room}", "It is too bright in the {room}",
        "Nobody is in the {room}, lights off", "Stop lighting the {room}"),
    (
        "No more light in the {room}", "I am leaving the {room}, lights off", "Sleep time in the {room}, lamp off",
        "Could you turn the {room} lamp off?", "We do not need the lamp in the {room}", "Make the {room} lights go off",
        "Save power in the {room}, light off", "End the light in the {room}")),
    Tool("add_item", {"item": "item", "count": "2-12"}, (
        "Put {count} {item} on the list", "Add {count} {item} to my shopping list", "We need {count} {item}",
        "Buy {count} {item}", "{count} {item} for the list", "Shopping list: {count} {item}",
        "Get {count} {item} from the shop", "{item}, {count} of them, on my list", "Note down {count} {item}",
        "Remember {count} {item}",
        "We are out of {item}, get {count}", "Do not let me forget {count} {item}"),
    (
        "Could you add {count} {item} to the list?", "I have to buy {count} {item}",
        "Write {count} {item} on the shopping list", "{count} more {item} please", "We should get {count} {item}",
        "I am going to need {count} {item}", "The list needs {count} {item}", "Please buy {item}, {count} pieces"),
    (
        "I would buy {count} {item}", "On the list: {item}, {count}",
        "Next time at the shop I want {count} {item}", "Order {count} {item}", "Would you note {count} {item}?",
        "{count} {item} should be on the list", "Pick up {count} {item}", "For the weekend we want {count} {item}")),
    Tool("navigate", {"place": "place", "city": "city"}, (
        "Take me to the {place} in {city}", "How do I get to the {place} in {city}?", "Drive to the {city} {place}",
        "Directions to the {place} of {city}", "Route to the {place} in {city}", "Navigate to the {city} {place}",
        "Bring me to the {place} in {city}", "Show me the way to the {city} {place}",
        "Where is the {place} in {city}?", "Let us drive to the {place} in {city}",
        "I want to go to the {place} in {city}", "Which way is the {place} in {city}?"),
    (
        "I have to be at the {place} in {city}", "Guide me to the {city} {place}",
        "Start the route to the {place} in {city}", "Can you lead me to the {place} in {city}?",
        "Plan a drive to the {city} {place}", "I am driving to the {place} of {city}",
        "Get me to the {city} {place}", "Find the {place} in {city} for me"),
    (
        "My next stop is the {place} in {city}", "Set course for the {city} {place}",
        "We are off to the {place} in {city}", "Drive me to the {place} of {city}",
        "How far is the {place} in {city}? Take me", "Lead the way to the {city} {place}",
        "I am looking for the {place} in {city}", "Could you route me to the {city} {place}?")),
    Tool("convert", {"amount": "2-900", "source": "currency", "target": "currency"}, (
        "How much is {amount} {source} in {target}?", "Convert {amount} {source} to {target}",
        "{amount} {source} in {target}", "Change {amount} {source} into {target}",
        "What are {amount} {source} worth in {target}?", "Turn {amount} {source} to {target}",
        "Exchange {amount} {source} for {target}", "{amount} {source}, in {target} please",
        "Give me {amount} {source} as {target}", "How many {target} are {amount} {source}?",
        "If I have {amount} {source}, how many {target} is that?", "I need the {target} for {amount} {source}"),
    (
        "What do I get in {target} for {amount} {source}?", "Say {amount} {source} in {target}",
        "Please change {amount} {source} to {target}", "Calculate {amount} {source} in {target}",
        "Would you change {amount} {source} to {target}?", "Into {target}: {amount} {source}",
        "What is the value in {target} of {amount} {source}?", "Work out {amount} {source} as {target}"),
    (
        "From {source} to {target}: {amount}", "I was paid {amount} {source}, tell me in {target}",
        "Price is {amount} {source}, in {target}?", "Swap {amount} {source} for {target}",
        "{amount} {source} make how many {target}?", "Express {amount} {source} in {target}",
        "Value of {amount} {source} in {target}", "Rate for {amount} {source} to {target}")),
    Tool("create_event", {"title": "title", "day": "day", "hour": "7-21"}, (
        "Put {title} in my calendar {day} at {hour}", "Schedule {title} for {day} at {hour}",
        "I have {title} {day} at {hour}", "New event: {title}, {day}, {hour} o'clock",
        "Plan {title} {day} at {hour} o'clock", "Add {title} to {day} at {hour}",
        "Enter {title} for {day} at {hour}", "{title} is {day} at {hour}", "Calendar: {title} {day} at {hour}",
        "Reserve {hour} o'clock {day} for {title}",
        "Block {day} at {hour} for {title}", "Do not let me miss {title} {day} at {hour}"),
    (
        "Make an event of {title} {day} at {hour}", "I am going to have {title} {day} at {hour}",
        "Set up {title} for {day}, {hour} o'clock", "Write {title} in my diary for {day} at {hour}",
        "There is {title} {day} at {hour}", "Book {title} {day} at {hour}", "On {day} at {hour} comes {title}",
        "Note {title} {day}, {hour} o'clock"),
    (
        "My {day} at {hour} is for {title}", "Could you plan {title} on {day} at {hour}?",
        "Remember {title}, {day} {hour} o'clock", "Diary: {day} at {hour}, {title}",
        "They moved {title} to {day} at {hour}", "Please arrange {title} for {day} at {hour}",
        "I am invited to {title} {day} at {hour}", "Mark {day} {hour} o'clock as {title}")),
)  # fmt: skip
RESULTS = ("ok", "done", "12 degrees, rain", "23 degrees and sunny", "not found", "saved", "84.20", "busy", "sent")


@dataclass(frozen=True)
class Split:
    """Which values and wordings an example may use."""

    held_out: bool = False
    new_wordings: bool = False
    also: bool = False
    still: bool = False

    def values(self, filler: str) -> list[str]:
        found = VALUES[filler].split("|" if "|" in VALUES[filler] else None)
        return found if filler in CLOSED else [one for i, one in enumerate(found) if (i % 4 == 3) == self.held_out]

    def wordings(self, tool: Tool) -> tuple[str, ...]:
        known = tool.wordings[:-2] + (tool.also if self.also else ()) + (tool.still if self.still else ())
        return tool.wordings[-2:] if self.new_wordings else known


def examples(name: str, count: int) -> Iterator[dict[str, Any]]:
    """``count`` examples of a split, as ``pocketgem tune`` reads them; ``kind`` says what is tried."""
    rng = random.Random(f"tool-call {SEEDS.get(name, name)}")
    if name == "choose":
        yield from _choices(rng, count)
        return
    for index in range(count):
        new_wordings = name in HELD_OUT and index % 2 == 1
        late = name in ("last", "end", "still")
        split = Split(name in HELD_OUT, new_wordings, also=late, still=name == "still")
        one, dice = _example(rng, split), rng.random()
        if late:
            one = _decorated(one, rng, DECORATED)
        none = {"more": MORE_NONE, "last": LAST_NONE, "still": LAST_NONE}.get(name, SHARE_NONE)
        if dice < none:
            yield _without(one, rng) | {"kind": "no tool"}
        elif dice < none + SHARE_RESULT:
            yield _answered(one, rng) | {"kind": "result"}
        else:
            yield one | {"kind": "new wording" if new_wordings else "call"}


def _decorated(example: dict[str, Any], rng: random.Random, share: float) -> dict[str, Any]:
    """The same request, in a share of cases with words around it that change nothing."""
    if rng.random() >= share:
        return example
    asked, *rest = example["messages"]
    text = asked["content"]
    before = rng.random() < 0.5
    around = f"{rng.choice(BEFORE)} {text[0].lower()}{text[1:]}" if before else f"{text} {rng.choice(AFTER)}"
    return example | {"messages": [asked | {"content": around}, *rest]}


def _choices(rng: random.Random, count: int) -> Iterator[dict[str, Any]]:
    """Each request twice, with the tool that serves it and without: nothing else tells whether to call."""
    for _ in range(count // 2):
        one = _decorated(_example(rng, Split(also=True)), rng, DECORATED / 2)
        served = _answered(one, rng) | {"kind": "result"} if rng.random() < SHARE_RESULT else one | {"kind": "call"}
        yield from (served, _without(one, rng) | {"kind": "no tool"})


def _example(rng: random.Random, split: Split) -> dict[str, Any]:
    tool = rng.choice(TOOLS)
    filled = {key: _value(rng, filler, split) for key, filler in tool.parameters.items()}
    text = rng.choice(split.wordings(tool)).format(**filled)
    text = text[0].upper() + text[1:] if rng.random() < 0.8 else text.lower() if text.islower() else text
    call = {"type": "function", "id": "call_0", "function": {"name": tool.name, "arguments": filled}}
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    return {"messages": [{"role": "user", "content": text}, answer], "tools": _offered(rng, tool)}


def _value(rng: random.Random, filler: str, split: Split) -> str | int:
    if filler[0] in string.digits:
        low, high = map(int, filler.split("-"))
        return rng.randint(low, high)
    return rng.choice(split.values(filler))


def _offered(rng: random.Random, tool: Tool) -> list[dict[str, Any]]:
    others = rng.sample([other for other in TOOLS if other is not tool], 2)
    return [one.declaration() for one in rng.sample([tool, *others], 3)]


def _without(example: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The same request, and nothing that serves it."""
    wanted = example["messages"][-1]["tool_calls"][0]["function"]["name"]
    others = rng.sample([tool for tool in TOOLS if tool.name != wanted], 3)
    messages = [example["messages"][0], {"role": "assistant", "content": NONE}]
    return {"messages": messages, "tools": [tool.declaration() for tool in others]}


def _answered(example: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The same request, after the call: the result is to be told."""
    result, call = rng.choice(RESULTS), example["messages"][-1]["tool_calls"][0]
    told = {"role": "tool", "tool_call_id": call["id"], "name": call["function"]["name"], "content": result}
    answer = {"role": "assistant", "content": f"Result: {result}"}
    return {"messages": [*example["messages"], told, answer], "tools": example["tools"]}


# ---- the score -------------------------------------------------------------------------------------------------------


def is_right(llm: LLM, example: Mapping[str, Any]) -> bool:
    """Whether the greedy answer is the expected one: the very text, or one call with the very arguments."""
    *asked, expected = example["messages"]
    reply = llm.chat(asked, tools=example["tools"], temperature=0.0, max_tokens=64)
    wanted = expected.get("tool_calls", [])
    made = [(call.name, dict(call.arguments)) for call in reply.tool_calls]
    return made == [(call["function"]["name"], call["function"]["arguments"]) for call in wanted] and (
        bool(wanted) or reply.content.strip() == expected["content"]
    )


def score(llm: LLM, path: Path, limit: int) -> dict[str, dict[str, int]]:
    """Right answers and all of each kind."""
    right, asked = Counter[str](), Counter[str]()
    for line in path.read_text(encoding="utf-8").splitlines()[:limit]:
        example = json.loads(line)
        hit = is_right(llm, example)
        for kind in (example["kind"], "all"):
            asked[kind] += 1
            right[kind] += hit
    return {kind: {"right": right[kind], "of": asked[kind]} for kind in asked}


def mean(folders: Sequence[Path], out: Path) -> None:
    """Write the mean of adapters that were trained on from the same one: each of their numbers by itself.

    Runs on different data end at different places of one valley, and the middle answers better than any of them
    (model soups, arXiv 2203.05482).
    """
    stored = [load_file(folder / WEIGHTS) for folder in folders]
    tensors = {name: torch.stack([one[name].double() for one in stored]).mean(0) for name in stored[0]}
    weights = as_safetensors({name: tensor.half() for name, tensor in tensors.items()}, metadata={"format": "pt"})
    files = {WEIGHTS: weights, **{name: (folders[0] / name).read_bytes() for name in (CONFIG, TEMPLATE, TOKENS)}}
    with new_folder(out, sum(map(len, files.values()))) as made:
        for name, content in files.items():
            write_synced(made / name, content)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("data", "score", "mean"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--adapter", default="tool-call", help="'' for the base, asked in the adapter's words")
    parser.add_argument("--split", choices=[*HELD_OUT], default="held_out", help="what is asked, for score")
    parser.add_argument("--of", type=Path, nargs="+", default=[], help="folders of adapters, for mean")
    parser.add_argument("--limit", type=int, default=COUNTS["held_out"])
    options = parser.parse_args()
    if options.what == "data":
        options.folder.mkdir(parents=True, exist_ok=True)
        for name, count in COUNTS.items():
            lines = (json.dumps(example) + "\n" for example in examples(name, count))
            (options.folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        return 0
    if options.what == "mean":
        mean(options.of, options.folder)
        return 0
    words = None if options.adapter else read_dialect(where_is("tool-call"))
    llm = LLM.load(options.model, adapter=options.adapter or None, dialect=words)
    json.dump(score(llm, options.folder / f"{options.split}.jsonl", options.limit), sys.stdout, indent=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
