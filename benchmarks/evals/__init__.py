"""lm-evaluation-harness over the server, beside its own backend on the same weights (docs/evaluate.md)."""
