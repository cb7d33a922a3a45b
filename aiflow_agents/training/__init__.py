"""How acorns grow: recipes, the character tokenizer, the two phases of training, and the card that says how good the result is."""
