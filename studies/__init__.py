"""Studies: a folder for each, with its page, its CSV files and make.py."""
