"""The Hydra application: compose, check, train, sweep."""
