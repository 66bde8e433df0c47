"""Train and measure one run."""
