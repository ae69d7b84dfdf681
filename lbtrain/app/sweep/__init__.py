"""Sweeps: many jobs, each a process of its own, checked before, shown meanwhile, compared after."""
