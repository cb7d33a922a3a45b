"""The terminal door. Importing it imports no command."""

from __future__ import annotations

FAULT = "What goes wrong on the network, such as 'phone-edge down 1.0 2.0', 'cloud dies 2.0', 'any loss 0.05' or 'any jitter 0.02'; repeatable."


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a command whose work can go on later. `resume` is the command that does that; the terminal prints it."""

    def __init__(self, resume: str):
        self.resume = resume
        super().__init__(resume)
