"""Who is hurt when a service or an edge degrades."""
