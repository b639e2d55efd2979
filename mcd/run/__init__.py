"""The run folder, its checkpoints, its log, and where a stage runs."""
