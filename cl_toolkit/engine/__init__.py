"""Engines: what turns losses into optimizer steps. `torch` for one device, `deepspeed` for many."""
