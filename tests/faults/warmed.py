"""What a process that commands are forked from has done already, once for all: templates compiled, vessels drawn."""

from trustcxr.data.phantom import anatomy
from trustcxr.report import html

for _name in html.environment().list_templates(extensions=["j2"]):
    html.environment().get_template(_name)
anatomy._vessel_trees()
