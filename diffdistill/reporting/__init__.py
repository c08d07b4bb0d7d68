"""What a run leaves for people: grids, the report, the model card. Nothing here imports torch before it is needed."""
