"""YAML to plain data to frozen dataclasses; what cannot work is refused."""
