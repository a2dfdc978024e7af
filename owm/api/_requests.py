"""Reading a request's body: JSON into a struct, with an error that names the field."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec
from quart import Request

from owm.api.errors import BadRequest, Unprocessable, UnsupportedMediaType

__all__ = ["read_body"]

T = TypeVar("T")
_HELP = "GET /openapi.json says what is expected"
_AT = re.compile(r"^(?P<detail>.*) - at `(?P<field>[^`]*)`$", re.DOTALL)


async def read_body(request: Request, type_: type[T]) -> T:
    """The body as a struct; its size was bounded while it was read.

    Raises:
        UnsupportedMediaType: not declared as JSON. A web form of a foreign site cannot declare it, so this is also
            what keeps such forms from asking.
        BadRequest: not JSON.
        Unprocessable: JSON of the wrong shape; names the field.
    """
    if request.mimetype != "application/json":
        raise UnsupportedMediaType("the body must be JSON: send `Content-Type: application/json`")
    data = await request.get_data(as_text=False)
    try:
        return msgspec.json.decode(data, type=type_)
    except msgspec.ValidationError as error:
        match = _AT.match(str(error))
        if match is None:
            raise Unprocessable(f"{error}; {_HELP}", field="$") from None
        raise Unprocessable(f"{match['detail']}; {_HELP}", field=match["field"]) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None
