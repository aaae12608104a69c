"""Image sets: in memory, in folders, by name; single pictures, labels and grids."""
