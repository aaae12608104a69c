"""A training run: its settings, its folder, its beginning, its end, and what it costs."""
