"""Train one run, cut off or not."""
