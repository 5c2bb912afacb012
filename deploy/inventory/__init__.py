"""A tenant's inventory as files: documents that people write, tables that clouds and registries publish."""
