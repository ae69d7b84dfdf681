"""The mathematics: torch and the standard library only; tensors in, tensors or frozen results out."""
