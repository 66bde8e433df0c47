"""Make the table of what linear models tell the class by."""

from studies.build import join_all_intervals

make_tables = join_all_intervals
