"""What a process that commands are forked from has done already, once for all: templates compiled, vessels drawn."""

from trustcxr.data.phantom import anatomy
from trustcxr.report import single_page

for _name in single_page.environment().list_templates(extensions=["j2"]):
    single_page.environment().get_template(_name)
anatomy._vessel_trees()
