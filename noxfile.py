"""Sessions that are too long for every pull request; ``.ci/run`` has the checks of each."""

from __future__ import annotations

import nox

PROJECT = nox.project.load_toml("pyproject.toml")


@nox.session
def docs(session: nox.Session) -> None:
    """Run the tutorials, store their outputs, build the pages, and follow the links between them.

    Names behind ``--`` choose tutorials: ``nox -s docs -- visium``; ``-- none`` runs none of them.
    """
    groups = nox.project.dependency_groups(PROJECT, "doc", "test")
    session.install("-e", ".[imagenet]", *groups)
    session.run("python", "scripts/tutorials.py", *session.posargs)
    session.run("python", "-m", "sphinx", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html")
    session.run("python", "scripts/check_links.py", "docs/_build/html")
