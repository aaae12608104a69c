"""Beyond the method: ours (Muon, prior, export) and the public release's (import)."""
