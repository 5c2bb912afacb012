"""What routes are given."""

from typing import Annotated

from fastapi import Depends, Request

from api.repository import Repository


def current_repository(request: Request) -> Repository:
    """Return the application's repository."""
    repository: Repository = request.app.state.repository
    return repository


RepositoryOf = Annotated[Repository, Depends(current_repository)]
