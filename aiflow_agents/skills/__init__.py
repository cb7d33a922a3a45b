"""Procedural skills: unlimited short questions with one right answer each, split so that what is tested was never trained on."""
