"""Check a data set: its files, faults, leaks between splits, and confounds."""
