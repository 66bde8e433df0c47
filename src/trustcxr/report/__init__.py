"""Results -> figures -> one self-contained HTML page."""
