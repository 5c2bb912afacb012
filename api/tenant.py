"""Whose data a request may see. THE ONE PLACE where authentication will enter.

Today the caller names the tenant itself, in the header ``X-Tenant`` or the query parameter ``tenant``, and is
believed: that is why the API listens on loopback alone. When authentication comes, ``current_tenant`` verifies a token
and takes the tenant from it; nothing else changes, since every route gets its tenant from here and every query is bound
to it.
"""

from typing import Annotated

from fastapi import Depends, Header, Query

from api.problems import Problem
from schemas.flow import MAX_NAME_BYTES
from schemas.ids import TenantId


def current_tenant(
    x_tenant: Annotated[str | None, Header(description="Tenant whose data is asked for.", examples=["acme"])] = None,
    tenant: Annotated[
        str | None, Query(description="Same as the header X-Tenant; one of the two is required.", examples=["acme"])
    ] = None,
) -> TenantId:
    """Return the tenant of this request.

    Raises:
        Problem: 400 if none is named, two different ones are, or the name cannot be one.
    """
    named = {name for name in (x_tenant, tenant) if name}
    if not named:
        raise Problem(400, "tenant-missing", "No tenant", "Name the tenant in the header X-Tenant or as ?tenant=NAME.")
    if len(named) > 1:
        raise Problem(
            400, "tenant-contradictory", "Two tenants", "Header X-Tenant and ?tenant= name different tenants."
        )
    (name,) = named
    if len(name.encode()) > MAX_NAME_BYTES or not name.isprintable():
        raise Problem(400, "tenant-invalid", "No such name", f"A tenant has 1 to {MAX_NAME_BYTES} printable bytes.")
    return TenantId(name)


Tenant = Annotated[TenantId, Depends(current_tenant)]
