"""Make the tables of times and load of the server."""

from studies.build import join_all_intervals

make_tables = join_all_intervals
