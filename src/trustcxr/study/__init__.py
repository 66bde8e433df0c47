"""Train, choose on validation, train robustly, test, explain and compare."""
