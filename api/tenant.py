"""Whose data a request may see: the tenant of its credential, and no other."""

from typing import Annotated

from fastapi import Depends

from api.dependencies import PrincipalOf
from schemas.ids import TenantId


def current_tenant(principal: PrincipalOf) -> TenantId:
    """Return the tenant of this request."""
    return principal.tenant


Tenant = Annotated[TenantId, Depends(current_tenant)]
