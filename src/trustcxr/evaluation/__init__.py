"""Evaluate a trained run: clean, attacked, corrupted, with masked lungs; each figure with an interval."""
