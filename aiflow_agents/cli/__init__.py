"""The terminal door. Importing it imports no command."""

from __future__ import annotations


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a command whose work can go on later. `resume` is the command that does that; the terminal prints it."""

    def __init__(self, resume: str):
        self.resume = resume
        super().__init__(resume)
