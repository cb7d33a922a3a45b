"""What can go wrong, and who is told.

1. A mistake in a file, an option or a name is a `UserError`: one line that says what, where and what to do; no traceback; exit code 2.
2. A member that cannot answer one call gives a `CallError` value (see `models.protocol`); the runtime turns it into `MemberFailed` for the
   topology that asked. It never disturbs other calls.
3. A task whose topology lets an error out is *data*: the sample is recorded as failed, counted wrong, listed, and tried again on resume.
4. Anything else is our bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class AIFlowError(Exception):
    """Base of every error this package raises on purpose."""


class UserError(AIFlowError):
    """The user can mend this: printed as one line, exit code 2."""


class ConfigError(UserError):
    """A mistake in a file. Says file, line and key, and what was expected there."""

    def __init__(self, message: str, *, file: str | Path | None = None, line: int | None = None, key: str | None = None):
        self.file, self.line, self.key = file, line, key
        place = f"{file}:{line}: " if file and line else f"{file}: " if file else ""
        super().__init__(f"{place}{f'{key}: ' if key else ''}{message}")


class UnknownName(UserError):
    """A name that the catalog does not hold. Offers the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]):
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known) or 'none'}"
        super().__init__(f"no {kind} named '{name}'; {hint}")


class NotThere(UnknownName):
    """A path at which there is no such thing. Offers names like that of the file."""

    def __init__(self, kind: str, path: str, known: Iterable[str]):
        near = difflib.get_close_matches(Path(path).stem, sorted(known), n=3)
        UserError.__init__(self, f"there is no {kind} at {path}" + (f"; did you mean {' or '.join(near)}?" if near else ""))


class NoRoute(UserError):
    """Two nodes that must talk have no path of links between them."""


class UnmetNeed(UserError):
    """A topology needs something of its team that the team does not have."""


class NotHere(AIFlowError):
    """A message was read on a node where it is not. `await message.to(node)` moves it."""


class PrivacyError(UserError):
    """Something was to leave a node at which it stays, in a form in which it was not released."""


class MemberFailed(AIFlowError):
    """A member could not answer; carries the member's name and the reason, and the kind of `CallError` where it was one."""

    def __init__(self, member: str, reason: str, kind: str = "failed"):
        self.member, self.reason, self.kind = member, reason, kind
        named = reason.startswith((f"{member}: ", f"{member} "))  # a model that is called as its member is says so itself
        super().__init__(reason if named else f"{member}: {reason}")

    def __reduce__(self):
        return MemberFailed, (self.member, self.reason, self.kind)


class Unreachable(AIFlowError):
    """A node was dead, or died, when something was to run on it or to come to or through it; or a link is gone for good. `node`: who died, if any."""

    def __init__(self, reason: str, node: str = ""):
        self.node = node
        super().__init__(reason)

    def __reduce__(self):
        return Unreachable, (str(self), self.node)


class Deadlock(AIFlowError):
    """Every task waits and nothing can ever happen; names the tasks."""


class OverBudget(AIFlowError):
    """What the task's budget has left is not enough for a call or a transfer: it was not made, or it was cut. See `runtime.budget`."""
