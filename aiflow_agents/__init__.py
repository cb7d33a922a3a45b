"""AIFlow Agents: teams of models across device, edge and cloud, and whether the team beats its best member."""

__version__ = "0.1.0"
