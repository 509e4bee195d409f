"""A request's body as JSON, looked at for depth and size before anything recursive or hungry reads it."""

from __future__ import annotations

import asyncio
import json
import re
from typing import NoReturn

import numpy as np

from pocketgem.serve.faults import Fault

MAX_DEPTH = 100  # levels of objects and lists
MAX_VALUES = 1_000_000  # of all kinds; each takes a hundred bytes as an object of Python
LARGE = 64 << 10  # bytes from which on the work is not done between two steps of the event loop

# A string, also one that never ends: no text makes it go back.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)


async def read_json(body: bytes) -> dict[str, object]:
    """The object in a body. Raises Fault 400."""
    return parse(body) if len(body) < LARGE else await asyncio.to_thread(parse, body)


def parse(body: bytes) -> dict[str, object]:
    _check_size(body)
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise Fault(400, f"the body is not UTF-8: bad byte at offset {error.start}", code="invalid_json") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise Fault(400, f"the body is not JSON: {error.msg} at {where}", code="invalid_json") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits
        raise Fault(400, "the body holds a number that is too long", code="invalid_json") from error
    if not isinstance(value, dict):
        raise Fault(400, "the body must be a JSON object", code="invalid_json")
    return value


def _check_size(body: bytes) -> None:
    bare = np.frombuffer(_STRING.sub(b"", body), np.uint8)
    opens, closes = (bare == ord("[")) | (bare == ord("{")), (bare == ord("]")) | (bare == ord("}"))
    values = int(opens.sum() + (bare == ord(",")).sum())
    if values > MAX_VALUES:
        raise Fault(400, f"the body holds more than {MAX_VALUES} values", code="invalid_json")
    depth = int(np.cumsum(opens.astype(np.int32) - closes.astype(np.int32)).max(initial=0))
    if depth > MAX_DEPTH:
        raise Fault(400, f"the body is nested more than {MAX_DEPTH} levels deep", code="invalid_json")


def _refuse_constant(name: str) -> NoReturn:
    raise Fault(400, f"the body holds {name}, which is not JSON", code="invalid_json")
