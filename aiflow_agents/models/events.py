"""An answer as an OpenAI-compatible endpoint sends it while it is made: server-sent events, and the whole that they make.

    data: {"choices": [{"delta": {"content": "4"}}]}      a portion
    data: {"choices": [], "usage": {...}}                 what it took, where that was asked for
    data: {"error": {"message": ...}}                     or: there will be no more of it
    data: [DONE]
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Tell = Callable[[int, tuple[int, ...], str], None]  # a `Told` of one request
AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})  # statuses that may pass
DONE = "[DONE]"


def events(chunks: Iterable[bytes]) -> Iterator[str]:
    """The data of each event. One that the end of the stream has cut in two is none.

    Lines end where the format says: JSON may hold other line breaks of Unicode, at which `str.splitlines` would cut it.
    """
    data: list[bytes] = []
    left = b""
    for chunk in chunks:
        *lines, left = (left + chunk).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield b"\n".join(data).decode()
                data = []
    if data:
        yield b"\n".join(data).decode()


class EndpointError(Exception):
    """What an endpoint says instead of an answer. `kind`: that of the `CallError`; empty where it may pass, if one waits `wait_s` seconds."""

    def __init__(self, said: str, kind: str = "", wait_s: float = 0.0):
        self.kind, self.wait_s = kind, wait_s
        super().__init__(said)


class TakenBack(Exception):
    """An answer that broke off, and was another one when it was asked for again."""


class Pieced:
    """Puts the pieces of an answer together to what would have come at once. `add` raises what JSON and its reading raise for what is none."""

    def __init__(self, chat: bool):
        self.text = ""
        self._chat, self._portions, self._done = chat, 0, False
        self._finish: Any = None
        self._usage: Any = None
        self._logprobs: list[Any] = []

    def add(self, data: str) -> None:
        """One event. Raises EndpointError for one that says what went wrong."""
        if data.strip() == DONE:
            self._done = True
            return
        said = json.loads(data)
        if error := said.get("error"):
            raise _wrong(error)
        self._usage = said.get("usage") or self._usage
        for choice in said.get("choices") or ():
            if choice.get("index", 0) == 0:
                self._add(choice)

    def _add(self, choice: dict[str, Any]) -> None:
        new = (choice.get("delta") or {}).get("content") if self._chat else choice.get("text")
        if new:
            self.text += new
            self._portions += 1
        self._finish = choice.get("finish_reason") or self._finish
        if given := choice.get("logprobs"):
            self._logprobs += given["content" if self._chat else "token_logprobs"] or ()

    @property
    def whole(self) -> bool:
        """Whether the end has come."""
        return self._finish is not None or (self._done and self._portions > 0)

    def body(self, tokens_in: int) -> dict[str, Any]:
        """As it would have come at once. Where the endpoint does not say what it took, the prompt counts `tokens_in`, each portion as a token."""
        words: dict[str, Any] = {"message": {"content": self.text}} if self._chat else {"text": self.text}
        logprobs = {"content" if self._chat else "token_logprobs": self._logprobs} if self._logprobs else None
        usage = self._usage or {"prompt_tokens": tokens_in, "completion_tokens": len(self._logprobs) or self._portions}
        return {"choices": [{**words, "finish_reason": self._finish, "logprobs": logprobs}], "usage": usage}


def _wrong(error: Any) -> EndpointError:
    """An error as OpenAI, or anybody, writes it into a stream, where there is no status any more that says whose fault it is."""
    about = error if isinstance(error, dict) else {"message": error}
    code = about.get("code")
    refused = (400 <= code < 500 and code not in AGAIN) if isinstance(code, int) else about.get("type") == "invalid_request_error"
    return EndpointError(" ".join(str(about.get("message") or about).split())[:200], "refused" if refused else "")


class Saying:
    """Tells what has come of an answer. Where that broke off, one that is asked for again goes on from it, and nothing is told twice."""

    def __init__(self, tell: Tell):
        self.text = ""
        self._tell, self._portions = tell, 0

    def add(self, text: str) -> None:
        """The answer begins so. Raises TakenBack where it was told otherwise."""
        if not text.startswith(self.text) and not self.text.startswith(text):
            raise TakenBack
        if new := text[len(self.text) :]:
            self._tell(self._portions, (), new)
            self._portions += 1
            self.text = text

    def end(self, text: str) -> None:
        """This is all of it. Raises TakenBack where it was told otherwise."""
        if not text.startswith(self.text):
            raise TakenBack
