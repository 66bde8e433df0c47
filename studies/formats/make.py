"""Make the table of one network in eight formats."""

from studies.build import join_all_intervals

make_tables = join_all_intervals
