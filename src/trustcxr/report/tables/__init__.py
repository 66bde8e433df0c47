"""The tables of the page: cells with what stands beside them."""
