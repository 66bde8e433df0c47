"""What a process that commands are forked from has done already, once for all: templates compiled, vessels drawn."""

from trustcxr.data.phantom import render_image
from trustcxr.report import html

for _name in html.load_templates().list_templates(extensions=["j2"]):
    html.load_templates().get_template(_name)
render_image._vessel_trees()
