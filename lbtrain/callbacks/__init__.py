"""Lightning callbacks: one file, one callback, on an unchanged LightningModule with automatic optimization."""
