"""Recipes to start from: `recipe`."""

from typing import Annotated

import typer

recipes_app = typer.Typer()


@recipes_app.command(epilog="Example: trustcxr recipe quick > my.yaml; then trustcxr study my.yaml")
def recipe(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="A recipe of the package; without it, what there is.")
    ] = "",
) -> None:
    """Print a recipe of the package with every key, each with what it means: the start of one's own."""
    from trustcxr.recipes import template

    if not name:
        for found, title in template.recipe_titles().items():
            print(f"{found:<16}{title}")
        return
    print(template.format_recipe(name), end="")
