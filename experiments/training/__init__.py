"""A training run: its settings, the model that it trains, and what happens between its updates."""
