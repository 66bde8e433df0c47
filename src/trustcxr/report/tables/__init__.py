"""Build the tables of the pages."""
