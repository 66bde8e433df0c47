"""What a process that commands are forked from has done already, once for all: templates compiled, vessels drawn."""

from trustcxr.data.phantom import anatomy
from trustcxr.report import html

for _name in html.load_templates().list_templates(extensions=["j2"]):
    html.load_templates().get_template(_name)
anatomy._vessel_trees()
