"""Beyond the method: ours (prior, export) and the public release's (import)."""
