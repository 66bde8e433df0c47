"""Saliency (where a model looks) and its measures against radiologists' masks."""
