"""What a process that commands are forked from has done already, once for all of them: templates of pages compiled."""

import gc

from trustcxr.report import single_page

for _name in single_page.environment().list_templates(extensions=["j2"]):
    single_page.environment().get_template(_name)
gc.collect()
