"""Hydra configs of lbtrain: one group per role, one YAML per class."""
