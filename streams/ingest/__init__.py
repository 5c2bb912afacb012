"""Source topics to `tenant-log`: decode, find the tenant, route, acknowledge."""
