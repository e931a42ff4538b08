"""Shipped configs: `base.yaml` holds every default once; the others state only differences."""
