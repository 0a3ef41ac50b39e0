"""`perdure demo --cluster`: the demo on the real engines, its services killed as well."""
